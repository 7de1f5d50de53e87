"""Conversations out to files and in from them: `rallychat export`, `rallychat import`, and `/export` in a chat."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import typer

from rallychat.cli.options import printable
from rallychat.cli.whose import acting_for
from rallychat.errors import InvalidRequest
from rallychat.settings import Settings

if TYPE_CHECKING:
    from rallychat.store import ConversationStore, Entire, StoredMessage

PARTLY = 3
"""Exit code where conversations of the file were left out."""


async def export(settings: Settings, file: str, *, markdown: bool, user: str | None) -> int:
    """Write somebody's conversations into a file ("-": standard output). What is there is not overwritten.

    Raises:
        InvalidRequest: the file is there already, or cannot be written. NotFound: nobody is called so.
    """
    from rallychat.transfer import everything

    async with _store(settings, user, "user.export") as store:
        with _written(file) as out:
            async for piece in everything(store, markdown=markdown):
                out.write(piece)
            out.flush()
    return 0


async def import_(settings: Settings, file: Path, *, user: str | None) -> int:
    """Take in what a file holds, and say what became of it.

    Raises:
        InvalidRequest: it cannot be read, or is no export. NotFound: nobody is called so.
    """
    from rallychat.catalog import Catalog
    from rallychat.transfer import import_file

    async with _store(settings, user, "user.import") as store:
        try:
            report = await import_file(store, file, knows=Catalog.load(settings).knows)
        except OSError as exc:
            raise InvalidRequest(f"{file} cannot be read: {exc.strerror}.") from exc
    left = report.empty + report.failed
    typer.echo(
        f"{report.imported} imported ({report.messages} messages), {report.already_here} were here already, "
        f"{left} left out."
    )
    for problem in report.problems:
        typer.echo(printable(problem))
    return PARTLY if left else 0


def write_one(name: str, entire: Entire, branch: Sequence[StoredMessage]) -> Path:
    """Write a conversation to a file: JSON with all branches if it ends in .json, else the branch as Markdown.

    Raises:
        InvalidRequest: the file is there already, or cannot be written.
    """
    from rallychat.transfer import as_json, as_markdown, document

    path = _path(name)
    is_json = path.suffix == ".json"
    said = document([as_json(entire)]) if is_json else as_markdown(entire.conversation, branch).encode()
    with _written(str(path)) as file:
        file.write(said)
    return path


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as exc:
        hint = f"a file of that name is ./{name}"
        raise InvalidRequest(f"{name} cannot be written: nobody here is called so.", hint=hint) from exc


@contextmanager
def _written(name: str) -> Iterator[IO[bytes]]:
    """A file that was not there; gone again if it could not be written whole."""
    if name == "-":
        yield sys.stdout.buffer
        return
    path = _path(name)
    try:
        file = path.open("xb")
    except FileExistsError as exc:
        raise InvalidRequest(f"{path} is there already.", hint="choose another name") from exc
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be written: {exc.strerror}.") from exc
    try:
        with file:
            yield file
    except BaseException as exc:
        path.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise InvalidRequest(f"{path} cannot be written: {exc.strerror}.") from exc
        raise


@asynccontextmanager
async def _store(settings: Settings, user: str | None, action: str) -> AsyncIterator[ConversationStore]:
    """The conversations, as those of a person; None: what was written without login."""
    from rallychat.store import ConversationStore

    async with ConversationStore.open(settings) as store, acting_for(store, user, action, disabled=True):
        yield store
