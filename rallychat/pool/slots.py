"""Who gets which slot, and when. Pure scheduling inside one event loop; knows nothing of engines.

A slot is one sequence in the engine's cache. Requests wait in order of priority, then arrival. The first in
line picks the idle slot that holds most of its prompt, and failing that one whose loss hurts little (empty, or
long unused).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from rallychat.engines.slots import shared_prefix
from rallychat.errors import Busy, RallyChatError

Notify = Callable[[int], None]
"""Called with the position in line, 1 is next, whenever it changes."""


class Priority(IntEnum):
    """Lower goes first."""

    CHAT = 0
    BACKGROUND = 10
    BATCH = 20


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the engine: `ids` is what its cache holds, as far as is known."""

    index: int
    ids: list[int] = field(default_factory=list)
    used_at: float = 0.0
    busy: bool = False


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    arrival: int
    ids: list[int] = field(compare=False)
    granted: asyncio.Future[Slot] = field(compare=False)
    notify: Notify = field(compare=False)
    position: int = field(default=0, compare=False)


class SlotQueue:
    """Admission to the slots of one engine.

    Args:
        slots: how many answers the engine generates at a time.
        limit: how many requests may wait; one more is refused with `Busy`.
    """

    def __init__(self, slots: int, *, limit: int) -> None:
        self._slots = [Slot(index) for index in range(slots)]
        self._limit = limit
        self._line: list[_Waiting] = []
        self._arrivals = itertools.count()
        self._open = False
        self._seconds_per_answer = 5.0

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.busy for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def idle(self) -> bool:
        """Nobody is served and nobody waits."""
        return not self.busy and not self._line

    def resume(self) -> None:
        """The engine is ready and its caches are empty: slots may be granted."""
        for slot in self._slots:
            slot.ids = []
        self._open = True
        self._grant()

    def pause(self) -> None:
        """The engine is gone: nobody is granted a slot until `resume`."""
        self._open = False

    def refuse(self, error: RallyChatError) -> None:
        """Everybody in line gets `error`."""
        line, self._line = self._line, []
        for waiting in line:
            if not waiting.granted.done():
                waiting.granted.set_exception(error)

    @asynccontextmanager
    async def slot(
        self, ids: list[int], *, notify: Notify, priority: Priority = Priority.CHAT
    ) -> AsyncIterator[Slot]:
        """A slot for a prompt of `ids`, as long as the context is open.

        The user of the slot sets `slot.ids` to what the cache then holds.

        Raises:
            Busy: too many are waiting.
        """
        slot = await self._acquire(ids, notify, priority)
        started = time.monotonic()
        try:
            yield slot
        finally:
            slot.busy = False
            slot.used_at = time.monotonic()
            self._seconds_per_answer += 0.2 * (slot.used_at - started - self._seconds_per_answer)
            self._grant()

    async def _acquire(self, ids: list[int], notify: Notify, priority: Priority) -> Slot:
        if len(self._line) >= self._limit and not (self._open and any(not s.busy for s in self._slots)):
            wait = self._seconds_per_answer * (len(self._line) + 1) / len(self._slots)
            raise Busy(
                f"{len(self._line)} requests are already waiting for this model.",
                retry_after=max(1.0, round(wait, 1)),
                hint="try again later, or raise max_queue",
            )
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(int(priority), next(self._arrivals), ids, future, notify)
        heapq.heappush(self._line, waiting)
        self._grant()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().busy = False  # granted in the same step as the cancel
            if waiting in self._line:
                self._line.remove(waiting)
                heapq.heapify(self._line)
            self._grant()
            raise

    def _grant(self) -> None:
        while self._open and self._line:
            if all(slot.busy for slot in self._slots):
                break
            waiting = heapq.heappop(self._line)
            if waiting.granted.done():
                continue
            slot = _best(self._slots, waiting.ids)
            slot.busy = True
            waiting.granted.set_result(slot)
        for position, waiting in enumerate(sorted(self._line), start=1):
            if waiting.position != position:
                waiting.position = position
                waiting.notify(position)


def _best(slots: Sequence[Slot], ids: list[int]) -> Slot:
    """The idle slot whose cache serves `ids` best; another conversation's cache is spared if possible.

    A stranger gets an empty slot, or one of the older three quarters, next to slots in use: llama.cpp computes
    neighbouring slots in one batch, scattered ones in several (measured: 30 % slower with every other slot).
    """
    idle = [slot for slot in slots if not slot.busy]
    shared = {slot.index: shared_prefix(slot.ids, ids) for slot in idle}
    kin = [slot for slot in idle if slot.ids and shared[slot.index] * 2 >= len(slot.ids)]
    if kin:
        return max(kin, key=lambda slot: (shared[slot.index], slot.used_at))
    spared = len(idle) // 4  # those used last
    oldest = sorted(idle, key=lambda slot: slot.used_at)[: len(idle) - spared]
    expendable = {slot.index: slot for slot in ([slot for slot in idle if not slot.ids] or oldest)}
    return expendable[_neighbour(sorted(expendable), [slot.index for slot in slots if slot.busy])]


def _neighbour(free: Sequence[int], busy: Sequence[int]) -> int:
    """The free index nearest to a busy one; where nothing is busy, the first of the longest row of free ones."""
    if busy:
        return min(free, key=lambda index: (min(abs(index - other) for other in busy), index))
    rows = [[free[0]]]
    for index in free[1:]:
        if index == rows[-1][-1] + 1:
            rows[-1].append(index)
        else:
            rows.append([index])
    return max(rows, key=len)[0]
