"""Connections to SQLite of which nothing is left once they are closed, also where somebody gave up amid a statement.

Each statement is one visit to the connection's thread; with `aiosqlite`'s own cursors it is four, and a turn of a
conversation a hundred, which a person waits for.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiosqlite
from aiosqlite.context import contextmanager

ROWS = 64
"""Rows that are fetched in one go, as `aiosqlite.connect` has it: the first of them with their statement."""


class _File(sqlite3.Connection):
    """Gives its locks back when it is closed.

    SQLite itself waits with that until the last cursor with rows to give has gone, and one that a cancelled task had is
    kept by its exception: nobody could write that long.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


class _Cursor(aiosqlite.Cursor):
    """Fetches the first rows as soon as its statement has run; is made and closed where it is used."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__(connection, connection._conn.cursor())
        self._rows: list[Any] = []
        self._over = True  # the statement has run to its end

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> _Cursor:
        self._over = False
        self._rows = await self._execute(  # type: ignore[no-untyped-call]
            _run, self._cursor, sql, parameters or ()
        )
        self._over = len(self._rows) < ROWS
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        if not self._over:
            rows += await super().fetchall()
            self._over = True
        return rows

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.arraysize if size is None else size
        if not (self._over or len(self._rows) >= size):
            more = [*await super().fetchmany(size)]
            self._over = len(more) < size
            self._rows += more
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    async def fetchone(self) -> Any:
        return next(iter(await self.fetchmany(1)), None)

    async def close(self) -> None:
        if self._over:
            self._cursor.close()
        else:  # it failed, was given up and may still run, or has more to give
            await super().close()


def _run(cursor: sqlite3.Cursor, sql: str, parameters: Any) -> list[Any]:
    cursor.execute(sql, parameters)
    return cursor.fetchmany(ROWS)


class _Driver(aiosqlite.Connection):
    """Makes such cursors, and ends its thread once.

    SQLAlchemy closes the connection of a cancelled task in peace, and if it is cancelled again, at once as well;
    whichever comes second would wait forever for a thread that has ended.
    """

    def __init__(self, path: Path) -> None:
        # from its pool SQLAlchemy may drop a connection in any thread
        super().__init__(lambda: sqlite3.connect(path, factory=_File, check_same_thread=False), ROWS)
        self._thread.daemon = True  # as SQLAlchemy has it: a process that ends does not wait for it
        self._ends = False

    @contextmanager
    async def cursor(self) -> aiosqlite.Cursor:
        return _Cursor(self)

    def stop(self) -> asyncio.Future[object] | None:
        if self._ends:
            return None
        self._ends = True
        return super().stop()


async def connect(path: Path) -> aiosqlite.Connection:
    """An open connection to the file at `path`."""
    return await _Driver(path)
