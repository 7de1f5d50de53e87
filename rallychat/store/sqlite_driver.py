"""Connections to SQLite of which nothing is left once they are closed, also where somebody gave up amid a statement."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import aiosqlite

_ROWS = 64
"""Rows that are fetched in one go, as `aiosqlite.connect` has it."""


class _File(sqlite3.Connection):
    """Gives its locks back when it is closed.

    SQLite itself waits with that until the last cursor with rows to give has gone, and one that a cancelled task had is
    kept by its exception: nobody could write that long.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


class _Driver(aiosqlite.Connection):
    """Ends its thread once.

    SQLAlchemy closes the connection of a cancelled task in peace, and if it is cancelled again, at once as well;
    whichever comes second would wait forever for a thread that has ended.
    """

    def __init__(self, path: Path) -> None:
        # from its pool SQLAlchemy may drop a connection in any thread
        super().__init__(lambda: sqlite3.connect(path, factory=_File, check_same_thread=False), _ROWS)
        self._thread.daemon = True  # as SQLAlchemy has it: a process that ends does not wait for it
        self._ends = False

    def stop(self) -> asyncio.Future[object] | None:
        if self._ends:
            return None
        self._ends = True
        return super().stop()


async def connect(path: Path) -> aiosqlite.Connection:
    """An open connection to the file at `path`."""
    return await _Driver(path)
