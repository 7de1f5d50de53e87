"""Conversations that have to leave their slots: what their caches hold is copied out, and brought back for them.

There may be many more conversations than slots. With it, who comes back waits for a copy, some ten milliseconds,
instead of for a prompt that is read anew.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass

from rallychat.engines.client import EngineClient
from rallychat.engines.slots import reusable, shared_prefix
from rallychat.errors import EngineRefused
from rallychat.pool.affinity import Cache, Slot
from rallychat.pool.fairness import Costs, Rate
from rallychat.recent import Recent

log = logging.getLogger(__name__)

LEAST = 64
"""Tokens that are worth a copy: fewer are read in little more time than it takes."""
NEARLY = 32
"""Tokens that a copy may lack and still do."""
WORTH = 0.5
"""Copying and bringing back may take so much of the time that reading takes."""
FELT = 0.1
"""Seconds: what is read in less is read again, for nobody feels it. That is so of most prompts on a GPU."""
SLOW = 200e6
"""Bytes a second that a disk writes and reads at least, as long as nothing was measured."""
MEMORY = 4096
"""Tokens copied last that say what copying takes."""
MOST = 1024
"""Users remembered."""
PRESSED = 300.0
"""Seconds after a conversation had to leave its slot in which others are copied before they have to."""
ANEW = 300.0
"""Seconds for which it holds what copying was measured to take: it may have been a bad time."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """One cache, under its name in the engine."""

    name: str
    cache: Cache


class Offload:
    """The copies of one engine's caches.

    Args:
        costs: says what reading takes.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._copies: dict[str, _Copy] = {}
        self._coming: dict[str, _Copy] = {}  # those that are being made: they can be forgotten already
        self._saving, self._restoring = Rate(MEMORY), Rate(MEMORY)
        self._bytes = 0
        self._left_at = self._measured_at = -PRESSED
        self._returning: Recent[str, None] = Recent(MOST)  # users whose requests without a conversation go on
        self.saved = 0
        """Caches copied out of slots so far."""
        self.restored = 0
        """Caches brought back."""

    def begin(self, bytes_per_token: int) -> None:
        """The engine has begun, or begun anew."""
        self._copies.clear()
        self._coming.clear()
        self._bytes = bytes_per_token

    def of(self, session: str) -> list[int]:
        """What the copy of a conversation's cache holds; nothing, if there is none."""
        found = (copy.cache.ids for copy in self._copies.values() if copy.cache.session == session)
        return next(found, []) if session else []

    def forget(self, *, session: str = "", user: str = "") -> list[str]:
        """Names of the copies of that conversation, or of all of that user's; they are known here no more."""
        names = [
            copy.name
            for copy in (*self._copies.values(), *self._coming.values())
            if (session and copy.cache.session == session) or (user and copy.cache.user == user)
        ]
        for name in names:
            self._copies.pop(name, None)
            self._coming.pop(name, None)
        return names

    async def exchange(
        self, slot: Slot, ids: list[int], client: EngineClient, *, salt: str | None, rollback: bool
    ) -> None:
        """Who was given the slot makes a prompt of `ids` in it: out with what it holds, in with their own.

        Raises:
            EngineError: the engine died or hangs, as it would have a moment later.
        """
        left, slot.left = slot.left, None
        try:
            if left is not None and self._goes(left, slot, ids, rollback=rollback):
                self._left_at = time.monotonic()
                if self._worth(left, saving=True):
                    await self._save(left, slot, client)
            mine = self._best(slot, ids, rollback=rollback)
            if mine is not None:
                await self._restore(mine, slot, client, salt=salt)
        except EngineRefused as exc:
            log.info("a cache was not kept: %s", exc)

    async def keep(self, slot: Slot, client: EngineClient) -> None:
        """Copies what a slot holds that nobody uses, before somebody needs it: then nobody waits for the copy.

        Only where conversations had to leave their slots lately.

        Raises:
            EngineError: the engine died or hangs.
        """
        cache = Cache(slot.user, slot.session, slot.ids)
        pressed = time.monotonic() - self._left_at < PRESSED
        if pressed and not (slot.stale or slot.spare) and self._worth(cache, saving=False):
            try:
                await self._save(cache, slot, client)
            except EngineRefused as exc:
                log.info("a cache was not kept: %s", exc)

    def _goes(self, left: Cache, slot: Slot, ids: list[int], *, rollback: bool) -> bool:
        """What the slot held is another conversation's, to be gone on with.

        Requests without a conversation are taken to be single ones, until one of their user's goes on from another; and
        nobody else waits for their copies, unless they were paused: read anew, they would take more from everybody.
        """
        if (left.user, left.session) == (slot.user, slot.session):
            goes_on = reusable(left.ids, ids, rollback=rollback) * 2 >= len(left.ids)
            if not slot.session and goes_on and len(left.ids) >= LEAST:
                self._returning[slot.user] = None
            if slot.session or goes_on:
                return False
        return bool(left.session) or left.paused or (left.user == slot.user and left.user in self._returning)

    def _worth(self, cache: Cache, *, saving: bool) -> bool:
        """There is no copy yet, and to bring one back (with `saving`, to make it, too) is quicker than reading."""
        there = self.of(cache.session)
        if len(cache.ids) < LEAST or (there and len(cache.ids) - shared_prefix(there, cache.ids) < NEARLY):
            return False
        return self._spares(len(cache.ids), len(cache.ids), saving=saving)

    def _spares(self, spared: int, copied: int, *, saving: bool) -> bool:
        """To read so many tokens is felt, and takes longer than to bring a copy of so many back, and to make it."""
        if time.monotonic() - self._measured_at > ANEW:
            self._saving, self._restoring = Rate(MEMORY), Rate(MEMORY)
        reading, unmeasured = self._costs.reading * spared, self._bytes / SLOW
        seconds = self._restoring.value or unmeasured
        seconds += (self._saving.value or unmeasured) if saving else 0.0
        return reading >= FELT and seconds * copied <= WORTH * reading

    def _best(self, slot: Slot, ids: list[int], *, rollback: bool) -> _Copy | None:
        """The copy that spares more of the prompt than what the slot holds, and is worth being brought back for it."""
        here, found = reusable(slot.ids, ids, rollback=rollback), None
        for copy in self._copies.values():
            if (copy.cache.user, copy.cache.session) == (slot.user, slot.session):
                spared = reusable(copy.cache.ids, ids, rollback=rollback)
                enough = spared >= max(LEAST, here + NEARLY) and spared * 2 >= len(copy.cache.ids)
                if enough and self._spares(spared - here, len(copy.cache.ids), saving=False):
                    here, found = spared, copy
        return found

    async def _save(self, cache: Cache, slot: Slot, client: EngineClient) -> None:
        before = self.forget(session=cache.session)
        name = before[0] if before else uuid.uuid4().hex
        coming = self._coming[name] = _Copy(name, cache)
        dropped: list[str] = []
        try:
            dropped, seconds = await client.save(slot.index, name, cache.ids)
        except EngineRefused:
            self._coming.pop(name, None)
            raise
        finally:  # who leaves meanwhile does not keep it from being made
            if self._coming.get(name) is coming:
                self._copies[name] = self._coming.pop(name)
            for gone in dropped:
                self._copies.pop(gone, None)
        if name not in self._copies and name not in dropped:
            await client.discard([name])  # it was forgotten meanwhile
        self._measured_at = time.monotonic()
        self._saving.add(len(cache.ids), seconds)
        self.saved += 1

    async def _restore(self, mine: _Copy, slot: Slot, client: EngineClient, *, salt: str | None) -> None:
        slot.ids = []
        try:
            seconds = await client.restore(slot.index, mine.name, cache_salt=salt)
        except EngineRefused:
            self._copies.pop(mine.name, None)
            raise
        slot.ids = mine.cache.ids  # the copy stays good until there is a newer one
        self._measured_at = time.monotonic()
        self._restoring.add(len(mine.cache.ids), seconds)
        self.restored += 1
        if mine.cache.paused and not mine.cache.session:  # it goes on here; nobody else asks for it
            self._copies.pop(mine.name, None)
            await client.discard([mine.name])
