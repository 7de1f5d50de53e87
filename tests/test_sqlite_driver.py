"""A statement is one visit to the thread of its connection, and gives all of its rows however they are fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text

from rallychat.store import sqlite_driver
from rallychat.store.sqlite import SqliteDatabase
from rallychat.store.sqlite_driver import ROWS

pytestmark = pytest.mark.sqlite
COUNT = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last) SELECT i FROM n"
)
LENGTHS = (1, 2, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 5 * ROWS + 3)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "rallychat.db", busy_timeout=1)
    await database.prepare()
    yield database
    await database.aclose()


@pytest.mark.parametrize("last", LENGTHS)
async def test_all_rows_are_there(database: SqliteDatabase, last: int) -> None:
    async with database.read() as db:
        assert [*await db.scalars(COUNT, {"last": last})] == [*range(1, last + 1)]


@pytest.mark.parametrize("last", LENGTHS)
@pytest.mark.parametrize("size", [1, 7, ROWS, ROWS + 9, 1000])
async def test_a_stream_is_whole(database: SqliteDatabase, last: int, size: int) -> None:
    async with database.read() as db:
        streamed = await db.stream(COUNT, {"last": last})
        chunks = [[row.i for row in chunk] async for chunk in streamed.partitions(size)]
    assert [number for chunk in chunks for number in chunk] == [*range(1, last + 1)]
    assert max(map(len, chunks)) <= size


@pytest.mark.parametrize("last", LENGTHS)
async def test_rows_one_by_one_and_then_the_rest(tmp_path: Path, last: int) -> None:
    connection = await sqlite_driver.connect(tmp_path / "some.db")
    cursor = await connection.cursor()
    await cursor.execute(str(COUNT), {"last": last})
    first = [await cursor.fetchone(), await cursor.fetchone()]
    rest = await cursor.fetchall()
    assert [row[0] for row in (*first, *rest) if row] == [*range(1, last + 1)]
    assert (await cursor.fetchone(), await cursor.fetchmany(), await cursor.fetchall()) == (None, [], [])
    await cursor.close()
    await connection.close()
    with pytest.raises(ValueError, match="no active connection"):
        await connection.cursor()


async def test_a_statement_is_one_visit(database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[Any] = []
    visit: Any = aiosqlite.Connection._execute

    async def counted(self: aiosqlite.Connection, function: Any, *args: Any, **kwargs: Any) -> Any:
        visits.append(function)
        return await visit(self, function, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    async with database.read() as db:
        visits.clear()
        assert [*await db.scalars(text("SELECT 1"))] == [1]  # and BEGIN
        assert len(visits) == 2
        assert [*await db.scalars(text("SELECT 2"))] == [2]
        assert len(visits) == 3


async def test_a_statement_that_fails_leaves_its_connection_whole(database: SqliteDatabase) -> None:
    async with database.read() as db:
        with pytest.raises(Exception, match="no such table"):
            await db.execute(text("SELECT * FROM nowhere"))
        assert [*await db.scalars(text("SELECT 1"))] == [1]
