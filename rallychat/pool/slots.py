"""Who gets which slot, and when. Pure scheduling inside one event loop; knows nothing of engines.

A slot is one sequence in the engine's cache. Requests wait in order of priority, then arrival. The first in
line picks the idle slot that holds most of its prompt, and failing that one whose loss hurts little (empty, stale,
or long unused).

People come first: while one is served or waits, nothing else is granted a slot, and whatever else runs is told to
leave (`Slot.wanted`), which it does within one engine step.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from rallychat.engines.slots import reusable
from rallychat.errors import Busy, RallyChatError

Notify = Callable[[int], None]
"""Called with the position in line, 1 is next, whenever it changes."""


Apart = Literal["no", "rather", "only"]
"""Whether a request stays out of the slot that holds its conversation's prompt: where another can be had, or always."""

PASSED = 16
"""Times that others of the background may go first before one that waits is next."""


class Priority(IntEnum):
    """Lower goes first. All but `CHAT` is background: it runs only while nobody waits or is answered."""

    CHAT = 0
    WARMING = 10
    COMPACTION = 20
    TITLES = 30
    BATCH = 40


class Preempted(Exception):
    """Background work had to leave because somebody who goes first wants the engine. To be tried again."""


class Crowded(Exception):
    """No slot can be had without harm to a conversation that is worth more."""


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the engine.

    Attributes:
        ids: what its cache holds, as far as is known.
        session: the conversation it belongs to, or empty.
        stale: that conversation has its prompt elsewhere now.
        holder: priority of who has it; None: it is idle.
        wanted: set when who has it is to leave.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    session: str = ""
    stale: bool = False
    used_at: float = 0.0
    holder: Priority | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def busy(self) -> bool:
        """Somebody has it."""
        return self.holder is not None

    @property
    def leaving(self) -> bool:
        """Who has it was told to leave."""
        return self.busy and self.wanted.is_set()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of the slots."""

    ids: list[int]
    priority: Priority = Priority.CHAT
    session: str = ""
    apart: Apart = "no"


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    arrival: int
    asked: Asked = field(compare=False)
    granted: asyncio.Future[Slot] = field(compare=False)
    notify: Notify = field(compare=False)
    position: int = field(default=0, compare=False)
    passed: int = field(default=0, compare=False)

    @property
    def person(self) -> bool:
        return self.priority == Priority.CHAT


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
        self._rollback = True
        self._seconds_per_answer = 5.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All of them."""
        return tuple(self._slots)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.busy for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def people(self) -> bool:
        """A person is served or waits."""
        return any(s.holder is Priority.CHAT for s in self._slots) or any(w.person for w in self._line)

    @property
    def idle(self) -> bool:
        """Nobody is served and nobody waits."""
        return not self.busy and not self._line

    def resume(self, *, rollback: bool = True) -> None:
        """The engine is ready and its caches are empty: slots may be granted.

        Args:
            rollback: it can drop the tail of a cache; if not, a cache is reused whole or not at all.
        """
        self._rollback = rollback
        for slot in self._slots:
            slot.ids, slot.session, slot.stale = [], "", False
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

    def home(self, session: str) -> Slot | None:
        """The slot that holds the conversation's prompt."""
        mine = (s for s in self._slots if session and s.session == session and not s.stale)
        return next(mine, None)

    def touch(self, session: str) -> None:
        """Somebody has the conversation open: its cache is spared as if it had just been used."""
        if (slot := self.home(session)) is not None:
            slot.used_at = time.monotonic()

    def settle(self, session: str, slot: Slot) -> None:
        """The conversation's prompt is in `slot` from now on: its other slots may be taken by anybody."""
        slot.stale = False
        for other in self._slots:
            if session and other.session == session and other is not slot:
                other.stale = True
                slot.used_at = max(slot.used_at, other.used_at)

    @asynccontextmanager
    async def slot(
        self,
        ids: list[int],
        *,
        notify: Notify = lambda _: None,
        priority: Priority = Priority.CHAT,
        session: str = "",
        apart: Apart = "no",
    ) -> AsyncIterator[Slot]:
        """A slot for a prompt of `ids`, as long as the context is open.

        The user of the slot sets `slot.ids` to what the cache then holds. Background work must leave when
        `slot.wanted` is set.

        Args:
            ids: the prompt.
            notify: hears the position in line.
            priority: who goes first.
            session: the conversation; background work takes no slot that was used later than this one's.
            apart: whether to stay out of the conversation's own slot.

        Raises:
            Busy: too many are waiting.
            Crowded: background work would harm others.
        """
        slot = await self._acquire(Asked(ids, priority, session, apart), notify)
        started = time.monotonic()
        try:
            yield slot
        finally:
            self._release(slot)
            if priority is Priority.CHAT:
                self._seconds_per_answer += 0.2 * (time.monotonic() - started - self._seconds_per_answer)
            self._grant()

    def _release(self, slot: Slot) -> None:
        if slot.holder in (Priority.CHAT, Priority.WARMING):
            slot.used_at = time.monotonic()
        slot.holder = None
        slot.wanted.clear()

    async def _acquire(self, asked: Asked, notify: Notify) -> Slot:
        person = asked.priority is Priority.CHAT
        ahead = sum(waiting.person is person for waiting in self._line)
        if ahead >= self._limit and not (person and self._open and any(not s.busy for s in self._slots)):
            wait = self._seconds_per_answer * (ahead + 1) / len(self._slots)
            raise Busy(
                f"{ahead} requests are already waiting for this model.",
                retry_after=max(1.0, round(wait, 1)),
                hint="try again later, or raise max_queue",
            )
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(int(asked.priority), next(self._arrivals), asked, future, notify)
        self._line.append(waiting)
        self._grant()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())  # granted in the same step as the cancel
            if waiting in self._line:
                self._line.remove(waiting)
            self._grant()
            raise

    def _grant(self) -> None:
        self._line = [waiting for waiting in self._line if not waiting.granted.done()]
        self._make_way()
        for waiting in sorted(self._line) if self._open else ():
            if not waiting.person:
                break
            self._give(waiting)
        while self._open and not self.people and (following := self._next_of_background()):
            if not self._give(following):
                break
        for position, waiting in enumerate(sorted(self._line), start=1):
            if waiting.position != position:
                waiting.position = position
                waiting.notify(position)

    def _make_way(self) -> None:
        """Tells those to leave who are in the way of somebody who goes first."""
        if self.people:
            for slot in self._slots:
                if slot.holder not in (None, Priority.CHAT):
                    slot.wanted.set()
        elif self._line and all(slot.busy and not slot.leaving for slot in self._slots):
            last = max(self._slots, key=lambda slot: (slot.holder or 0, slot.index))
            if (last.holder or 0) > min(self._line).priority:
                last.wanted.set()

    def _next_of_background(self) -> _Waiting | None:
        line = sorted(waiting for waiting in self._line if not waiting.person)
        patient = [waiting for waiting in line if waiting.passed >= PASSED]
        return min(patient, key=lambda waiting: waiting.arrival) if patient else line[0] if line else None

    def _give(self, waiting: _Waiting) -> bool:
        """Grants a slot, or an error; False while there is none to grant."""
        person = waiting.person
        free = [slot for slot in self._slots if not slot.busy or (person and slot.leaving)]
        if not free:
            return False
        slot = _best(self._slots, free, waiting.asked, rollback=self._rollback)
        if slot is not None and slot.busy:
            return False  # its own slot comes free within one engine step: better than another's cache
        self._line.remove(waiting)
        if slot is None:
            waiting.granted.set_exception(Crowded())
            return True
        for other in self._line:
            other.passed += other.priority > Priority.CHAT and not person
        asked = waiting.asked
        if asked.apart == "no":
            slot.session = asked.session
            self.settle(asked.session, slot)
        elif slot is not self.home(asked.session):  # until it is settled, anybody may have it
            slot.session, slot.stale = asked.session, True
        slot.holder = asked.priority
        slot.wanted.clear()
        waiting.granted.set_result(slot)
        return True


def _best(slots: Sequence[Slot], free: Sequence[Slot], asked: Asked, *, rollback: bool) -> Slot | None:
    """The free slot whose cache serves a request best; another conversation's cache is spared if possible.

    A stranger gets an empty slot, or one of the older three quarters, next to slots in use: llama.cpp computes
    neighbouring slots in one batch, scattered ones in several (measured: 30 % slower with every other slot).
    """
    mine = [slot for slot in slots if asked.session and slot.session == asked.session and not slot.stale]
    shared = {slot.index: reusable(slot.ids, asked.ids, rollback=rollback) for slot in free}
    others = [slot for slot in free if slot not in mine or asked.apart == "no"]
    kin = [s for s in others if s.ids and (s in mine or shared[s.index] * 2 >= len(s.ids))]
    if asked.priority is not Priority.CHAT:
        kin = [slot for slot in kin if slot.stale or slot.session == asked.session]
    if kin:
        return max(kin, key=lambda slot: (shared[slot.index], slot.used_at))
    if asked.priority is not Priority.CHAT:
        until = max((slot.used_at for slot in mine), default=time.monotonic())
        others = [slot for slot in others if not slot.ids or slot.stale or slot.used_at < until]
    elif any(not slot.busy for slot in others):
        others = [slot for slot in others if not slot.busy]  # a stranger waits for nobody to leave
    if not others:
        own = [slot for slot in mine if slot in free]
        return own[0] if own and asked.apart != "only" else None
    spared = max(len(others) // 4, int(len(others) > 1))  # those used last
    oldest = sorted(others, key=lambda slot: slot.used_at)[: len(others) - spared]
    empty = [slot for slot in others if not slot.ids]
    expendable = {slot.index: slot for slot in (empty or [slot for slot in others if slot.stale] or oldest)}
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
