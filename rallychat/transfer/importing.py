"""Reads an export file, conversation by conversation, whatever its size, and stores what it holds.

Memory holds one conversation at a time. A second import brings nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rallychat.errors import InvalidRequest
from rallychat.store import ConversationStore
from rallychat.transfer import chatgpt, openwebui, ours
from rallychat.transfer.records import NotJson, records
from rallychat.transfer.trees import Read, text_of

MOST_NAMED = 100
"""Conversations the report names; of more there are only counts."""
LARGEST_UNPACKED = 4 * 1024**3
"""Bytes of JSON read out of a ZIP file."""
_END: Final = object()
_BROKEN_ZIP: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)
"""What `zipfile` raises where a file is damaged, packed in an unknown way, or has a password."""


@dataclass(slots=True)
class Report:
    """What an import did. `problems` and `left_out` name what was not taken, and why."""

    imported: int = 0
    messages: int = 0
    already_here: int = 0
    empty: int = 0
    failed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """One more thing to say, unless there are too many."""
        if len(self.problems) < MOST_NAMED:
            self.problems.append(text_of(sentence))  # it may quote the file
        elif len(self.problems) == MOST_NAMED:
            self.problems.append("… and more of the kind.")


async def import_file(
    store: ConversationStore, path: Path, *, knows: Callable[[str], bool] = lambda _name: False
) -> Report:
    """Takes in every conversation of an export: our JSON, ChatGPT's (its ZIP, too), Open WebUI's.

    A conversation that cannot be read is named in the report; the others are taken all the same.

    Args:
        knows: whether the catalog has a model of this name. A conversation with another goes on with the default: its
            file must not choose what is opened or fetched here.

    Raises:
        InvalidRequest: the file is none of these, or ends in the middle; what was read before that is stored.
    """
    report = Report()
    found = _records(path)
    try:
        while (record := await asyncio.to_thread(next, found, _END)) is not _END:
            await _take(store, record, report, knows)
    except NotJson as exc:
        done = report.imported + report.already_here
        after = f" after {done} conversation{'s' * (done != 1)}, which are here" if done else ""
        raise InvalidRequest(
            f"The file is not valid JSON{after}: {exc}.",
            hint="import the file as it was exported, JSON or ZIP",
        ) from exc
    finally:
        with suppress(ValueError):  # cancelled while a thread is in it, it is closed when that comes out
            found.close()
    if not report.imported + report.already_here + report.empty + report.failed:
        raise InvalidRequest(
            "There are no conversations in this file.",
            hint="it must be an export of RallyChat, ChatGPT or Open WebUI",
        )
    return report


async def _take(store: ConversationStore, record: Any, report: Report, knows: Callable[[str], bool]) -> None:
    number = report.imported + report.already_here + report.empty + report.failed + 1
    name = f"Conversation {number}"
    try:
        read = await asyncio.to_thread(_read, record)
        if (model := read.conversation.model) is not None and not knows(model):
            read.conversation = replace(read.conversation, model=None)
            read.left_out["models that are not in the catalog"] += 1
        name += f" ('{read.conversation.title[:60]}')" if read.conversation.title else ""
        if not read.conversation.messages:
            report.empty += 1
            report.note(f"{name} was left out: it has no messages that can be taken.")
        elif await store.library.take_in(read.conversation) is None:
            report.already_here += 1
            return
        else:
            report.imported += 1
            report.messages += len(read.conversation.messages)
    except InvalidRequest as exc:
        report.failed += 1
        report.note(f"{name} was left out: {exc.message}")
        return
    report.left_out += read.left_out
    if read.left_out:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(read.left_out.items()))
        report.note(f"{name}: not taken over: {what}.")


def _read(record: Any) -> Read:
    if not isinstance(record, dict):
        raise InvalidRequest("it is not an object.")
    if "mapping" in record:
        read = chatgpt.read(record)
    elif "chat" in record or "history" in record:
        read = openwebui.read(record)
    elif "messages" in record:
        read = ours.read(record)
    else:
        raise InvalidRequest("it has neither 'mapping', 'chat' nor 'messages'.")
    if not read.conversation.origin:
        read.conversation = replace(
            read.conversation, origin=f"content:{_digest(read.conversation.messages)}"
        )
    return read


def _digest(messages: object) -> str:
    return hashlib.sha256(repr(messages).encode("utf-8", "surrogatepass")).hexdigest()


def _records(path: Path) -> Generator[Any]:
    if zipfile.is_zipfile(path):
        yield from _unpacked(path)
        return
    with path.open("rb") as file:
        yield from records(file)


def _unpacked(path: Path) -> Generator[Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in _exports(archive):
                with archive.open(info) as file:
                    yield from records(file)
    except _BROKEN_ZIP as exc:
        raise InvalidRequest(
            "The ZIP file is damaged, locked, or packed in an unknown way.",
            hint="import the export as it came",
        ) from exc


def _exports(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    found = [info for info in archive.infolist() if _is_export(info.filename)]
    if not found:
        raise InvalidRequest(
            "The ZIP file holds no 'conversations.json'.", hint="import the export as it came"
        )
    if sum(info.file_size for info in found) > LARGEST_UNPACKED:
        raise InvalidRequest(
            f"The ZIP file holds more than {LARGEST_UNPACKED // 1024**3} GB of conversations."
        )
    return sorted(found, key=lambda info: info.filename)


def _is_export(name: str) -> bool:
    """ChatGPT's large exports come in parts: conversations-000.json, …; ours of a user, one file each."""
    folder, _, file = name.rpartition("/")
    return file.endswith(".json") and (file.startswith("conversations") or folder.endswith("conversations"))
