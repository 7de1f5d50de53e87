"""Whoever gives up amid a statement leaves neither a lock nor a task behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from rallychat.store.sqlite import SqliteDatabase

pytestmark = pytest.mark.sqlite
LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT sum(i) FROM n"


def gives_up(database: SqliteDatabase, statement: str) -> None:
    """Cancels the task that asks for `statement`, once: the driver's thread runs it all the same."""
    given_up: list[str] = []

    @event.listens_for(database._engine.sync_engine, "before_cursor_execute")
    def cancel(connection: Any, cursor: Any, asked: str, *_: Any) -> None:
        task = asyncio.current_task()
        if asked == statement and not given_up and task is not None:
            given_up.append(asked)
            task.cancel()


@pytest.mark.parametrize(
    "statement", ["BEGIN IMMEDIATE", "CREATE TABLE behind (one)", "SELECT name FROM sqlite_schema"]
)
async def test_a_write_given_up_does_not_keep_the_next_one_from_writing(
    tmp_path: Path, statement: str
) -> None:
    database = SqliteDatabase(tmp_path / "rallychat.db", busy_timeout=0.1)
    await database.prepare()
    gives_up(database, statement)
    with pytest.raises(asyncio.CancelledError) as kept:  # with its traceback, and so the cursor
        async with database.write() as db:
            await db.execute(text(statement))
    async with database.write() as db:
        await db.execute(text("CREATE TABLE next (one)"))
    async with database.read() as db:
        assert (
            await db.scalar(text("SELECT count(*) FROM sqlite_schema WHERE name IN ('behind', 'next')")) == 1
        )
    await database.aclose()
    assert kept.traceback


@pytest.mark.parametrize("later", range(8))
async def test_whoever_is_told_twice_to_stop_leaves_no_task_behind(tmp_path: Path, later: int) -> None:
    database = SqliteDatabase(tmp_path / "rallychat.db", busy_timeout=1)
    await database.prepare()
    asked = asyncio.Event()

    async def write() -> None:
        async with database.write() as db:
            asked.set()
            await db.execute(text(LONG))

    writing = asyncio.create_task(write())
    await asked.wait()
    await asyncio.sleep(0)
    writing.cancel()
    for _ in range(later):
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    async with database.write() as db:
        await db.execute(text("CREATE TABLE next (one)"))
    await database.aclose()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=1)
    assert not [task for task in left if not task.done()]
