"""The newest words of growing answers, on their way to the database.

The database is written a few times a second; a process killed in between would forget what people have already
read. So each delta is first appended to a file of the process, `run/<owner>.journal`: one write, no flush, which
the operating system completes even for a process that dies in the next instruction. Whoever finds the dead
process's answers reads its journal.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import orjson

from rallychat.messages import Part, Reasoning, ReasoningDelta, Text, TextDelta

log = logging.getLogger(__name__)

LIMIT = 1024 * 1024
"""Bytes from which on what has ended is taken out of the file, if something still grows."""

_KINDS: dict[str, type[Text | Reasoning]] = {"text": Text, "reasoning": Reasoning}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Journal:
    """One process's journal. Its file exists while answers grow.

    Args:
        path: the file; made when the first answer begins, removed when the last has ended. Where one always grows it
            is written anew from time to time, with what grows alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._growing: set[str] = set()
        self._size = 0
        self._most = LIMIT
        self._unwritten = b""
        """What the disk had no room for; it goes before what comes next, so that nothing is missing in between."""

    def begin(self, message_id: str, parts: tuple[Part, ...]) -> None:
        """An answer grows from now on; `parts` is what it has already (it is being continued)."""
        self._growing.add(message_id)
        self._write({"begin": message_id, "parts": [[part.kind, part.text] for part in parts]})

    def add(self, message_id: str, delta: TextDelta | ReasoningDelta) -> None:
        """More of an answer that has begun."""
        self._write(
            {
                "add": message_id,
                "kind": "text" if isinstance(delta, TextDelta) else "reasoning",
                "text": delta.text,
            }
        )

    def end(self, message_id: str) -> None:
        """The answer is in the database, whole."""
        self._growing.discard(message_id)
        if not self._growing:
            self.close()
        elif self._size > self._most and not self._unwritten:
            self._shrink()

    def close(self) -> None:
        """Removes the file, unless it holds what could not be stored: the next start tries again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not self._growing:
            self._unwritten = b""
            self._size, self._most = 0, LIMIT
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _shrink(self) -> None:
        """Takes out of the file what has ended."""
        told = deltas(self._path)
        begun = [
            {"begin": name, "parts": [[_NAMES[kind], text] for kind, text in told[name]]}
            for name in told
            if name in self._growing
        ]
        kept = b"".join(orjson.dumps(line) + b"\n" for line in begun)
        fresh = self._path.with_suffix(".fresh.journal")  # swept like any other, should we die now
        try:
            with open(fresh, "wb", opener=partial(os.open, mode=0o600)) as file:
                file.write(kept)
            if self._file is not None:
                os.close(self._file)
                self._file = None
            fresh.replace(self._path)
            self._size = len(kept)
        except OSError as exc:
            log.warning("the journal %s cannot be written anew: %s", self._path, exc.strerror)
        self._most = max(LIMIT, 2 * self._size)

    def _write(self, line: Mapping[str, object]) -> None:
        first = not self._unwritten
        self._unwritten += orjson.dumps(line) + b"\n"
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            written = os.write(self._file, self._unwritten)
            self._unwritten = self._unwritten[written:]
            self._size += written
        except OSError as exc:  # the answer goes on, and is still saved a few times a second
            if first:
                log.warning("the journal %s cannot be written: %s", self._path, exc.strerror)


Told = tuple[type[Text | Reasoning], str]
"""One delta as the journal holds it."""


def recovered(path: Path) -> dict[str, tuple[Part, ...]]:
    """What a dead process's journal holds, by message. A line cut by the death is left out."""
    return {message: whole(told) for message, told in deltas(path).items()}


def deltas(path: Path) -> dict[str, list[Told]]:
    """As `recovered`, delta by delta, as they were told; what was there when the answer began counts as told."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    found: dict[str, list[Told]] = {}
    for line in lines[:-1]:
        with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            row = orjson.loads(line)
            if "begin" in row:
                found[row["begin"]] = [(_KINDS[kind], text) for kind, text in row["parts"]]
            else:
                found[row["add"]].append((_KINDS[row["kind"]], row["text"]))
    return found


def whole(told: Sequence[Told]) -> tuple[Part, ...]:
    """Neighbouring deltas of a kind, joined."""
    return tuple(
        kind("".join(text for _, text in group))
        for kind, group in itertools.groupby(told, lambda pair: pair[0])
    )


def forget(paths: Sequence[Path]) -> None:
    """Removes journals that no running answer needs."""
    for path in paths:
        with suppress(OSError):  # one that stays goes the next time
            path.unlink(missing_ok=True)
