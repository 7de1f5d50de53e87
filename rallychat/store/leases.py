"""Work that exactly one process does: it takes a lease of that name, and has it until it gives it back or dies."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from rallychat.identity import acting_as
from rallychat.store.database import Database, insert_new
from rallychat.store.owners import Owner
from rallychat.store.processes import Processes
from rallychat.store.tables import leases
from rallychat.store.whole import whole


class LeaseStore:
    """Made by `ConversationStore`. A lease needs no renewal: it lasts as long as its process lives."""

    def __init__(self, database: Database, owner: Owner, processes: Processes) -> None:
        self._database = database
        self._owner = owner
        self._processes = processes

    @whole
    async def take(self, name: str) -> bool:
        """Whether this process has the lease from now on, or had it already."""
        holder = await self._holder(name)
        if holder is None:
            with acting_as(self._owner.id):
                async with self._database.write() as db:
                    if await insert_new(db, leases, {"name": name, "owner": self._owner.id}):
                        return True
            holder = await self._holder(name)
        if holder is None or holder == self._owner.id:
            return holder is not None
        if not await self._processes.gone([holder]):
            return False
        with acting_as(self._owner.id):
            async with self._database.write() as db:
                dead = (leases.c.name == name) & (leases.c.owner == holder)
                done = await db.execute(update(leases).where(dead).values(owner=self._owner.id))
                return bool(done.rowcount)

    @whole
    async def release(self, name: str) -> None:
        """Gives a lease back; one that another process has is left alone."""
        mine = (leases.c.name == name) & (leases.c.owner == self._owner.id)
        with acting_as(self._owner.id):
            async with self._database.write() as db:
                await db.execute(delete(leases).where(mine))

    async def _holder(self, name: str) -> str | None:
        async with self._database.read() as db:
            return (await db.scalars(select(leases.c.owner).where(leases.c.name == name))).one_or_none()
