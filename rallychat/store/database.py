"""Transactions on the database, whichever it is. What only one of them knows is in `sqlite.py` and `postgres.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Write = Literal["durable", "growing"]
"""Growing answers are committed without waiting for the disk; whatever else is written waits for it."""


class Database(ABC):
    """Transactions. One that writes sees nobody else's writes to the same person's things before it ends."""

    name: str
    """Where it is, as a person may read it: without passwords."""
    is_shared: bool
    """Processes of other machines, or with another data folder, may use it too."""
    searchable: bool = False
    """It has a full-text index. Known once it is prepared."""

    @abstractmethod
    async def prepare(self) -> None:
        """Creates what is not there, and brings the schema to today's. The caller keeps this machine's others out.

        Raises:
            StoreError: it cannot be used, is not ours, or is of a later version; it is left as it is.
        """

    @abstractmethod
    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """One consistent view of the database."""

    @abstractmethod
    def write(self, kind: Write = "durable") -> AbstractAsyncContextManager[AsyncConnection]:
        """One transaction, committed at the end, undone if the block raises."""

    @abstractmethod
    async def search(
        self,
        db: AsyncConnection,
        asked: list[str],
        *,
        conversation_id: str | None,
        limit: int,
        every: bool = False,
    ) -> list[tuple[str, float]]:
        """Messages of this person that have any of these words, as (id, score), the best first; none of the trash.

        `every`: that have all of them, and stand in a conversation that is listed.
        """

    @abstractmethod
    async def tell(self, db: AsyncConnection, topic: str) -> None:
        """Once this transaction is committed, wakes who waits for `topic`, as far as the database can."""

    @abstractmethod
    async def wait(self, topic: str) -> None:
        """Returns when something of `topic` may have changed: when it was told, or after a moment."""

    @abstractmethod
    async def scrub(self) -> None:
        """Overwrites what was deleted, as far as the database can; a failure is only said in the log."""

    @abstractmethod
    async def size(self) -> int:
        """Bytes on the disk."""

    @abstractmethod
    async def aclose(self) -> None:
        """Closes every connection."""


async def insert_new(db: AsyncConnection, table: Table, row: dict[str, Any]) -> bool:
    """Inserts a row unless there is one of its key; returns whether it did."""
    insert = postgresql.insert if db.dialect.name == "postgresql" else sqlite.insert
    done = await db.execute(insert(table).values(**row).on_conflict_do_nothing())
    return bool(done.rowcount)


async def put(db: AsyncConnection, table: Table, row: dict[str, Any]) -> None:
    """Inserts a row, or changes the one that has its primary key."""
    key = [column.name for column in table.primary_key]
    given = {name: value for name, value in row.items() if name not in key}
    insert = postgresql.insert if db.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row)
    await db.execute(statement.on_conflict_do_update(index_elements=key, set_=given))
