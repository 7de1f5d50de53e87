"""SQLite: one file, which several processes of one machine may share. The place that knows its driver and pragmas.

What a crash can lose (WAL): a killed process loses no commit at all. A power cut loses no *durable* commit,
for those wait until the disk has them (synchronous=FULL): a person's message, the end of an answer, whatever
a person changes. Commits of growing answers do not wait (synchronous=NORMAL): a power cut may take the last
of them back, to an earlier and whole state; the next durable commit carries them to the disk too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from rallychat.errors import RallyChatError, StoreError
from rallychat.identity import current
from rallychat.store import migrate, search, sqlite_driver
from rallychat.store.codec import from_json, to_json
from rallychat.store.database import Database, Write

POLL = 0.25
"""Seconds after which somebody who waits for another process looks again."""
_OPTION = "rallychat_write"
_PATIENCE = 30.0
"""Seconds that others may keep the file from being written anew."""
log = logging.getLogger(__name__)

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


class SqliteDatabase(Database):
    """Transactions on a file; see the module for what each survives."""

    is_shared = False

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self.path = path
        self.name = str(path)
        self._busy_timeout = busy_timeout
        self._engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(path)),
            async_creator=partial(sqlite_driver.connect, path),
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

    async def prepare(self) -> None:  # noqa: D102
        await asyncio.to_thread(self._prepare)
        self.searchable = search.available()

    def _prepare(self) -> None:
        create_file(self.path)
        with translated(self.path):
            if _revision(self.path, self._busy_timeout) == migrate.HEAD:
                return
            engine = create_engine(URL.create("sqlite", database=str(self.path)), poolclass=NullPool)
            # Altering a table means rebuilding it, and dropping the old one breaks the rows that point to it.
            configure(engine, busy_timeout=self._busy_timeout, foreign_keys=False)
            with engine.connect() as connection, connection.begin():
                upgrade(connection, self.path)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:  # noqa: D102
        with translated(self.path):
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, kind: Write = "durable") -> AsyncGenerator[AsyncConnection]:  # noqa: D102
        async with self._turn:
            with translated(self.path):
                async with self._writers[kind].begin() as connection:
                    yield connection

    async def search(  # noqa: D102
        self,
        db: AsyncConnection,
        asked: list[str],
        *,
        conversation_id: str | None,
        limit: int,
        every: bool = False,
    ) -> list[tuple[str, float]]:
        query = search.query(asked, conversation_id=conversation_id, every=every)
        if not query or not self.searchable:
            return []
        asked_for = {"query": query, "limit": limit, "user": current().id, "every": every}
        found = await db.execute(text(search.FIND), asked_for)
        return [(row.message_id, row.score) for row in found]

    async def tell(self, db: AsyncConnection, topic: str) -> None:
        """Nothing: SQLite cannot wake another process, so whoever waits looks every now and then."""

    async def wait(self, topic: str) -> None:  # noqa: D102
        await asyncio.sleep(POLL)

    async def scrub(self) -> None:
        """Writes the file anew without what was deleted, and empties the log beside it."""
        async with self._turn:
            try:
                with translated(self.path):
                    await asyncio.to_thread(self._scrub)
            except StoreError as exc:
                log.warning("what was deleted is not overwritten yet: %s", exc)

    def _scrub(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as connection:
            if self.searchable:  # its index only marks what was deleted
                connection.execute("INSERT INTO said (said) VALUES ('optimize')")
            connection.execute("VACUUM")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            log.warning("%s-wal is in use: it still holds what was deleted", self.path)

    async def size(self) -> int:  # noqa: D102
        return self.path.stat().st_size

    async def aclose(self) -> None:  # noqa: D102
        await self._engine.dispose()


def upgrade(connection: Connection, path: Path) -> None:
    """Runs migrations on an open transaction, and brings the full-text index to it."""
    migrate.upgrade(connection, str(path))
    if search.available():
        for statement in (*search.SCHEMA, *search.FILL):
            connection.exec_driver_sql(statement)
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise StoreError(f"{path} could not be updated: a row of '{broken[0]}' points nowhere.")


def _revision(path: Path, busy_timeout: float) -> str | None:
    """The schema's revision, or None where there is none. Plain sqlite3: this is on every start's path."""
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        # Changes nothing, and fails where the file cannot be written: better now than in the middle of a turn.
        connection.execute("BEGIN")
        connection.execute("UPDATE alembic_version SET version_num = version_num")
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            return None
        raise
    finally:
        connection.close()
    return None if row is None else str(row[0])
