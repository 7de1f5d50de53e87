"""Batches: what was asked, how far each is, and which process works on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import Conflict, Forbidden, InvalidRequest, NotFound
from rallychat.identity import current
from rallychat.store import codec
from rallychat.store.account_tables import users
from rallychat.store.batch_tables import batches, files
from rallychat.store.database import Database
from rallychat.store.files import OPEN
from rallychat.store.ids import new_id
from rallychat.store.owners import Owner
from rallychat.store.processes import Processes
from rallychat.store.whole import whole

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One batch. The times are when it came into the state of that name."""

    id: str
    user_id: str
    status: Status
    owner: str | None
    endpoint: str
    completion_window: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    output_expires_after: int | None
    model: str | None
    metadata: Mapping[str, str] | None
    errors: Sequence[Mapping[str, Any]] | None
    usage: Mapping[str, int] | None
    total: int
    completed: int
    failed: int
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None

    @property
    def open(self) -> bool:
        """There is still something to do."""
        return self.status in OPEN


class BatchStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction.

    What a request asks is for its person's batches alone; what a runner does is for those this process owns.
    """

    def __init__(self, database: Database, owner: Owner, processes: Processes) -> None:
        self._database = database
        self._owner = owner
        self._processes = processes

    # --- for the person who asks --------------------------------------------------------------------------

    @whole
    async def create(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        lives: timedelta,
        metadata: Mapping[str, str] | None = None,
        output_expires_after: int | None = None,
    ) -> StoredBatch:
        """A new batch over a file of the current person's.

        Args:
            lives: after which it expires.

        Raises:
            NotFound: there is no such file. InvalidRequest: it was not uploaded for a batch. Forbidden: the account
                was disabled meanwhile.
        """
        now = datetime.now(UTC)
        row: dict[str, Any] = dict.fromkeys(batches.c.keys()) | {
            "id": new_id("batch"),
            "user_id": current().id,
            "status": "validating",
            "endpoint": endpoint,
            "completion_window": completion_window,
            "input_file_id": input_file_id,
            "output_expires_after": output_expires_after,
            "metadata": codec.metadata_json(metadata) if metadata is not None else None,
            "total": 0,
            "completed": 0,
            "failed": 0,
            "created_at": now,
            "expires_at": now + lives,
        }
        mine = (files.c.id == input_file_id, files.c.user_id == current().id)
        alive = or_(files.c.expires_at.is_(None), files.c.expires_at > now)
        # locked: who disables the account comes before, or finds the batch
        shut_out = select(users.c.disabled).where(users.c.id == current().id).with_for_update()
        async with self._database.write() as db:
            if (await db.scalars(shut_out)).first():
                raise Forbidden("This account is disabled.", hint="ask an admin")
            known = codec.is_id(input_file_id)
            found = (await db.scalars(select(files.c.purpose).where(*mine, alive))).first() if known else None
            if found is None:
                raise NotFound("file", input_file_id)
            if found != "batch":
                raise InvalidRequest(
                    f"The file '{input_file_id}' was uploaded for '{found}', not for 'batch'.",
                    param="input_file_id",
                    hint="upload it again with purpose 'batch'",
                )
            await db.execute(insert(batches).values(**row))
        return StoredBatch(**row)

    @whole
    async def get(self, batch_id: str) -> StoredBatch:
        """One batch.

        Raises:
            NotFound: there is none.
        """
        async with self._database.read() as db:
            return await _batch(db, batch_id, batches.c.user_id == current().id)

    @whole
    async def list(self, *, limit: int, after: str | None = None) -> Sequence[StoredBatch]:
        """The current person's batches, the newest first.

        Raises:
            NotFound: there is none called `after`.
        """
        mine = batches.c.user_id == current().id
        asked = select(batches).where(mine).order_by(batches.c.id.desc()).limit(limit)
        async with self._database.read() as db:
            if after is not None:
                asked = asked.where(batches.c.id < (await _batch(db, after, mine)).id)
            return [StoredBatch(**row) for row in (await db.execute(asked)).mappings()]

    @whole
    async def cancel(self, batch_id: str) -> StoredBatch:
        """Says that a batch is to end; who works on it ends it. What is done is kept.

        Raises:
            NotFound: there is none. Conflict: it has ended, or is about to.
        """
        async with self._database.write() as db:
            batch = await _batch(db, batch_id, batches.c.user_id == current().id)
            if batch.status not in ("validating", "in_progress", "cancelling"):
                raise Conflict(f"The batch '{batch_id}' is {batch.status}, so it cannot be cancelled.")
            if batch.status != "cancelling":
                await _change(db, batch_id, _to("cancelling"))
            return await _batch(db, batch_id)

    # --- for the process that works on it -----------------------------------------------------------------

    @whole
    async def unfinished(self) -> Sequence[StoredBatch]:
        """Everybody's batches that have not ended, the oldest first."""
        async with self._database.read() as db:
            found = await db.execute(select(batches).where(batches.c.status.in_(OPEN)).order_by(batches.c.id))
            return [StoredBatch(**row) for row in found.mappings()]

    @whole
    async def claimable(self, among: Collection[StoredBatch]) -> Sequence[StoredBatch]:
        """Those of the batches that no living process works on, but perhaps this one."""
        others = {batch.owner for batch in among} - {None, self._owner.id}
        dead = await self._processes.gone([other for other in others if other])
        free = {None, self._owner.id, *dead}
        return [batch for batch in among if batch.owner in free]

    @whole
    async def claim(self, batch: StoredBatch) -> StoredBatch | None:
        """Makes a claimable batch this process's; None: another was faster, or it has ended."""
        async with self._database.write() as db:
            same = batches.c.owner.is_(None) if batch.owner is None else batches.c.owner == batch.owner
            mine = update(batches).where(batches.c.id == batch.id, same, batches.c.status.in_(OPEN))
            taken = await db.execute(mine.values(owner=self._owner.id))
            return await _batch(db, batch.id) if taken.rowcount else None

    @whole
    async def release(self, batch_id: str) -> None:
        """Lets others have a batch of this process's."""
        async with self._database.write() as db:
            await db.execute(update(batches).where(*self._this(batch_id)).values(owner=None))

    @whole
    async def advance(self, batch_id: str, status: Status, **facts: Any) -> StoredBatch:
        """Brings a batch of this process's one state further, unless it is being cancelled.

        Raises:
            NotFound: it is not this process's any more.
        """
        async with self._database.write() as db:
            batch = await _batch(db, batch_id, *self._this(batch_id))
            stays = batch.status == "cancelling" and status in ("in_progress", "finalizing")
            await _change(db, batch_id, facts if stays else _to(status) | facts)
            return await _batch(db, batch_id)

    @whole
    async def count(self, batch_id: str, *, completed: int, failed: int) -> None:
        """Tells how far a batch of this process's is."""
        async with self._database.write("growing") as db:
            told = {"completed": completed, "failed": failed}
            await db.execute(update(batches).where(*self._this(batch_id)).values(**told))

    @whole
    async def end(
        self, batch_id: str, status: Status, made: Sequence[Mapping[str, Any]], **facts: Any
    ) -> StoredBatch:
        """Ends a batch of this process's, together with the rows of the files it made.

        Raises:
            NotFound: it is not this process's any more.
        """
        async with self._database.write() as db:
            await _batch(db, batch_id, *self._this(batch_id))
            for row in made:
                await db.execute(insert(files).values(**row))
            await _change(db, batch_id, _to(status) | facts | {"owner": None})
            return await _batch(db, batch_id)

    def _this(self, batch_id: str) -> tuple[ColumnElement[bool], ...]:
        return batches.c.id == batch_id, batches.c.owner == self._owner.id


def _to(status: Status) -> dict[str, Any]:
    times = {} if status == "validating" else {f"{status}_at": datetime.now(UTC)}
    return {"status": status, **times}


async def _change(db: AsyncConnection, batch_id: str, facts: Mapping[str, Any]) -> None:
    if facts:
        await db.execute(update(batches).where(batches.c.id == batch_id).values(**facts))


async def _batch(db: AsyncConnection, batch_id: str, *where: ColumnElement[bool]) -> StoredBatch:
    if codec.is_id(batch_id):
        found = await db.execute(select(batches).where(batches.c.id == batch_id, *where))
        if (row := found.mappings().one_or_none()) is not None:
            return StoredBatch(**row)
    raise NotFound("batch", batch_id)
