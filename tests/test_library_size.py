"""What the lists cost where there are thousands of conversations: statements, and SQLite's own steps for each."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert
from sqlalchemy.engine import Engine

from rallychat.settings import Settings
from rallychat.store import ConversationStore, Shelf
from rallychat.store.tables import conversations, messages

pytestmark = pytest.mark.sqlite
FEW, MANY = 300, 3000
LISTS = {
    "pinned": Shelf(pinned=True),
    "recent": Shelf(pinned=False, filed=False),
    "folder": Shelf(folder="F1"),
    "archive": Shelf(archived=True),
    "trash": Shelf(trash=True),
}


def fill(folder: Path, count: int) -> None:
    """So many conversations of one question each, every twentieth on another shelf."""
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for n in range(count):
        at = now - timedelta(minutes=n)
        row: dict[str, Any] = {
            "id": f"conv_{n:024d}",
            "title": f"About bird {n}",
            "system": "",
            "sampling": {},
            "metadata": {},
        }
        row |= {"user_id": "local", "created_at": at, "updated_at": at, "listed": True}
        row |= {"pinned": n % 20 == 1, "archived": n % 20 == 2, "folder": "F1" if n % 20 == 3 else None}
        rows.append(row | {"deleted_at": at if n % 20 == 4 else None})
        parts = [{"kind": "text", "text": f"what does bird {n} sing"}]
        one: dict[str, Any] = {
            "id": f"msg_{n:024d}",
            "conversation_id": row["id"],
            "role": "user",
            "status": "complete",
        }
        said.append(one | {"parts": parts, "created_at": at})
    engine = create_engine(f"sqlite:///{folder / 'rallychat.db'}")
    with engine.begin() as db:
        db.execute(insert(conversations), rows)
        db.execute(insert(messages), said)
    engine.dispose()


@contextmanager
def counting() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that is run meanwhile."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, params: Any, _context: Any, _many: Any) -> None:
        seen.append((statement, params))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def steps(database: Path, statements: Sequence[tuple[str, Any]]) -> int:
    """Instructions that SQLite takes for them: the same at every time, on every machine."""
    taken = 0

    def one() -> int:
        nonlocal taken
        taken += 1
        return 0

    with closing(sqlite3.connect(database)) as connection:
        connection.set_progress_handler(one, 1)
        for statement, params in statements:
            connection.execute(statement, params).fetchall()
    return taken


async def cost(
    folder: Path, count: int, ask: Callable[[ConversationStore], Awaitable[Any]]
) -> tuple[int, int]:
    """Statements and steps of one question to a store of so many conversations."""
    async with ConversationStore.open(Settings(data_dir=folder)) as store:
        fill(folder, count)
        with counting() as seen:
            assert await ask(store)
        return len(seen), steps(folder / "rallychat.db", seen)


@pytest.mark.parametrize("shelf", LISTS)
async def test_a_list_costs_what_it_shows_however_many_conversations_there_are(
    tmp_path: Path, shelf: str
) -> None:
    async def ask(store: ConversationStore) -> Any:
        return await store.library.list(LISTS[shelf], limit=10)

    few, many = await cost(tmp_path / "few", FEW, ask), await cost(tmp_path / "many", MANY, ask)
    assert (many[0], many[1] < 1.2 * few[1]) == (few[0], True), (few, many)


async def test_going_on_from_the_middle_of_a_list_costs_no_more_than_its_beginning(tmp_path: Path) -> None:
    async def ask(store: ConversationStore) -> Any:
        middle = f"conv_{MANY // 2:024d}"
        return await store.library.list(LISTS["recent"], limit=10, before=middle)

    async def begin(store: ConversationStore) -> Any:
        return await store.library.list(LISTS["recent"], limit=10)

    later, first = await cost(tmp_path / "later", MANY, ask), await cost(tmp_path / "first", MANY, begin)
    assert (later[0], later[1] < 1.5 * first[1]) == (first[0] + 1, True), (first, later)


async def test_a_search_reads_no_conversation_more_than_once_for_each_way_of_looking(tmp_path: Path) -> None:
    async def ask(store: ConversationStore) -> Any:
        return await store.library.search("bird", limit=10)

    few, many = await cost(tmp_path / "few", FEW, ask), await cost(tmp_path / "many", MANY, ask)
    assert many[0] <= few[0]
    assert many[1] < 1.3 * (MANY / FEW) * few[1], (few, many)
