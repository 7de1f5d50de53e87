"""The processes that use one database: this one's place among them, and what the dead ones left behind.

A process lives while its lock is held, where its lock can be seen: the operating system frees it, however the process
dies. Processes on other machines, or with another data folder, can only share a PostgreSQL database; there each also
notes every few seconds that it is alive, by the database's clock, and one that has not for `LAPSE` counts as dead.
Where this one could not either, the database was away: then all get as long again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, func, select

from rallychat.errors import RallyChatError, StoreError
from rallychat.identity import acting_as
from rallychat.store import queries
from rallychat.store.database import Database, put
from rallychat.store.journal import deltas, forget
from rallychat.store.owners import Owner, starting
from rallychat.store.tables import leases, messages, owners
from rallychat.store.whole import to_the_end, whole

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two notes that this process is alive."""
LAPSE = timedelta(seconds=20)
SILENCE = 10.0
"""Seconds between two such notes of this process from which on the database counts as having been away. No more than
`LAPSE` less `BEAT`: who noted it just before that has been silent for so much longer."""
_INTERRUPTED = "The server stopped before this answer was finished."
_START_TIMEOUT = 60.0


class Processes:
    """Who writes what, and whether they still live.

    Args:
        owner: this process.
    """

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database = database
        self._owner = owner
        self._noted = time.monotonic()
        self._judging_from = self._noted

    @asynccontextmanager
    async def joined(self) -> AsyncGenerator[None]:
        """This process is one of them until the block ends: then answers of its that run count as interrupted."""
        beating: asyncio.Task[None] | None = None
        try:
            await to_the_end(self._join())
            await self.interrupt_orphans()
            if self._database.is_shared:
                beating = asyncio.create_task(self._beat_on(), name="note that this process is alive")
            yield
        finally:
            if beating is not None:
                beating.cancel()
                with suppress(asyncio.CancelledError):
                    await beating
                with suppress(StoreError):  # it will count as dead soon enough
                    await self._leave()
            self._owner.release()

    async def _join(self) -> None:
        one_at_a_time = starting(self._owner.folder, timeout=_START_TIMEOUT)
        await asyncio.to_thread(one_at_a_time.__enter__)
        try:
            await self._database.prepare()
            await asyncio.to_thread(self._owner.take)
            if self._database.is_shared:
                self._owner.find_place()
                self._noted = time.monotonic()
                await self._beat()
        finally:
            one_at_a_time.__exit__(None, None, None)

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self._beat()
                await self.interrupt_orphans()
            except RallyChatError as exc:
                log.warning("this process cannot note that it is alive: %s", exc)

    @whole
    async def _beat(self) -> None:
        with acting_as(self._owner.id):  # waits for no person's writes
            async with self._database.write("growing") as db:
                row = {"id": self._owner.id, "place": self._owner.place, "seen_at": func.now()}
                await put(db, owners, row)
        now = time.monotonic()
        if now - self._noted > SILENCE:
            self._judging_from = now + LAPSE.total_seconds()
        self._noted = now

    @whole
    async def _leave(self) -> None:
        async with self._database.write() as db:
            await db.execute(delete(owners).where(owners.c.id == self._owner.id))
            await db.execute(delete(leases).where(leases.c.owner == self._owner.id))

    @whole
    async def interrupt_orphans(self) -> int:
        """Marks running answers of dead processes as interrupted; returns how many."""
        # First: the dead begin nothing that is waited for afterwards.
        ended = await asyncio.to_thread(self._ended)
        async with self._database.read() as db:
            names = await queries.owners_of_running(db)
        await asyncio.to_thread(forget, [path for path, owner in ended.items() if owner not in names])
        gone = await self.gone(names)
        if not gone:
            return 0
        journals = [self._owner.journal(owner) for owner in gone]
        newest = await asyncio.to_thread(lambda: [deltas(path) for path in journals])
        async with self._database.write() as db:
            for owner, texts in zip(gone, newest, strict=True):
                for message_id, told in texts.items():
                    await queries.restore(db, message_id, owner=owner, told=told)
            await queries.drop_claims(db, gone)
            interrupted = await queries.interrupt(db, messages.c.owner.in_(gone), error=_INTERRUPTED)
            await db.execute(delete(owners).where(owners.c.id.in_(gone)))
        await asyncio.to_thread(forget, journals)
        return interrupted

    async def gone(self, names: Sequence[str]) -> list[str]:
        """Those of these processes that are dead."""
        others = [name for name in names if name != self._owner.id]
        lapsed = await self._lapsed(others) if others and self._database.is_shared else {}
        near = [name for name in others if lapsed.get(name) is None]
        far = [name for name in others if lapsed.get(name)]
        return far + (await asyncio.to_thread(self._unlocked, near) if near else [])

    async def _lapsed(self, names: Sequence[str]) -> dict[str, bool | None]:
        """Whether each lets nothing be heard of it any more; None: its lock tells."""
        late = owners.c.seen_at < func.now() - LAPSE
        async with self._database.read() as db:
            rows = await db.execute(
                select(owners.c.id, owners.c.place, late.label("late")).where(owners.c.id.in_(names))
            )
            judging = self._is_judging()
            heard = {
                row.id: None if row.place == self._owner.place else judging and bool(row.late) for row in rows
            }
        return {name: heard.get(name, True) for name in names}

    def _is_judging(self) -> bool:
        """The others could note that they are alive, as far as this process can tell from its own notes."""
        now = time.monotonic()
        return now - self._noted <= SILENCE and now >= self._judging_from

    def _unlocked(self, names: Sequence[str]) -> list[str]:
        with starting(self._owner.folder, timeout=_START_TIMEOUT):
            return [name for name in names if not self._owner.is_live(name)]

    def _ended(self) -> dict[Path, str]:
        with starting(self._owner.folder, timeout=_START_TIMEOUT):
            return self._owner.ended()
