"""The connection to the database, and the one place that knows it is SQLite.

What a crash can lose (WAL): a killed process loses no commit at all. A power cut loses no *durable* commit,
for those wait until the disk has them (synchronous=FULL): a person's message, the end of an answer, whatever
a person changes. Commits of growing answers do not wait (synchronous=NORMAL): a power cut may take the last
of them back, to an earlier and whole state; the next durable commit carries them to the disk too.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rallychat.errors import RallyChatError, StoreError
from rallychat.store.codec import from_json, to_json

Write = Literal["durable", "growing"]
_OPTION = "rallychat_write"

_SENTENCES = {
    "SQLITE_FULL": ("There is no room left on the disk for {path}.", "free some space"),
    "SQLITE_BUSY": ("Another program keeps {path} locked.", "close it and try again"),
    "SQLITE_LOCKED": ("Another program keeps {path} locked.", "close it and try again"),
    "SQLITE_READONLY": ("{path} cannot be written.", "check who owns the file and its folder"),
    "SQLITE_CANTOPEN": ("{path} cannot be opened.", "check who owns the file and its folder"),
    "SQLITE_NOTADB": ("{path} is not a database.", "it was left as it is; move it away to start anew"),
    "SQLITE_CORRUPT": (
        "{path} is damaged.",
        "it was left as it is; `sqlite3 FILE .recover` may save most of it",
    ),
    "SQLITE_IOERR": ("The disk failed under {path}.", "check the disk and its free space"),
    "SQLITE_TOOBIG": ("A message is too long to be stored in {path}.", "shorten it"),
}


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turns what the driver raises into a StoreError of one sentence."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as exc:
        cause = exc.orig if isinstance(exc, StatementError) else exc
        if isinstance(cause, RallyChatError):  # a value refused while the statement was bound
            raise cause from exc
        name = getattr(cause, "sqlite_errorname", "")
        # Extended codes say more than a person needs: SQLITE_READONLY_DIRECTORY is SQLITE_READONLY to them.
        known = next((kind for kind in _SENTENCES if f"{name}_".startswith(f"{kind}_")), None)
        if known is None:
            raise StoreError(f"The conversation database {path} failed: {cause}.") from exc
        raise _store_error(known, path) from exc
    except (ValueError, TypeError) as exc:  # a time that is none, text that is not UTF-8
        raise _store_error("SQLITE_CORRUPT", path) from exc


def _store_error(kind: str, path: Path) -> StoreError:
    sentence, hint = _SENTENCES[kind]
    return StoreError(sentence.format(path=path), hint=hint)


def create_file(path: Path) -> None:
    """Creates an empty file for its owner's eyes only, where there is none.

    One that exists is never opened, for closing it again would drop every lock that SQLite holds on it elsewhere in
    this process (POSIX), and another process could then take the database for unused.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as exc:
        raise StoreError(
            f"The conversation database {path} cannot be created: {exc.strerror}.",
            hint="check who owns the folder, or choose another with --data-dir",
        ) from exc


def configure(engine: Engine, *, busy_timeout: float, foreign_keys: bool = True) -> None:
    """Sets each new connection up, and begins transactions ourselves."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        # We begin transactions ourselves: left to it, sqlite3 begins none before DDL.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")
        cursor.execute(
            "PRAGMA journal_size_limit = 67108864"
        )  # a WAL that a long read let grow shrinks again
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        write: Write | None = connection.get_execution_options().get(_OPTION)
        if write is None:
            connection.exec_driver_sql("BEGIN")
            return
        level = "FULL" if write == "durable" else "NORMAL"
        connection.exec_driver_sql(f"PRAGMA synchronous = {level}")  # not allowed inside a transaction
        # The write lock at once: a transaction that reads first and writes later fails without waiting
        # when another process wrote in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Transactions on the conversation database; see the module for what each survives."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self.path = path
        self._engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(path)),
            json_serializer=to_json,
            json_deserializer=from_json,
            max_overflow=0,
        )
        configure(self._engine.sync_engine, busy_timeout=busy_timeout)
        self._writers: dict[Write, AsyncEngine] = {
            "durable": self._engine.execution_options(**{_OPTION: "durable"}),
            "growing": self._engine.execution_options(**{_OPTION: "growing"}),
        }
        # SQLite's own way to wait for another writer is to sleep and look again; our tasks queue.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        """One consistent view of the database."""
        with translated(self.path):
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, kind: Write = "durable") -> AsyncGenerator[AsyncConnection]:
        """One transaction, committed at the end, undone if the block raises."""
        async with self._turn:
            with translated(self.path):
                async with self._writers[kind].begin() as connection:
                    yield connection

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()
