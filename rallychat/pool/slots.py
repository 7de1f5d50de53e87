"""Who gets which slot, and when. Pure scheduling inside one event loop; knows nothing of engines.

A slot is one sequence in the engine's cache. People come first, their turns by user (`fairness`); the rest waits in
order of priority, then arrival. The first in line picks its slot (`affinity`).

While a person is served or waits, nothing else is granted a slot, and whatever else runs is told to leave
(`Slot.wanted`), which it does within one engine step: a short one, for few are prepared for at a time. So is told an
answer of somebody who has more than a fair share.
Three exceptions: answers that nobody watches go on while people leave them a slot; work that asks to go on `beside`
answers may have a slot while they are written, one at a time; and as much of a batch goes on as was measured to slow
nobody (`strain`). None begins while anybody waits for a slot or for a first token.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from rallychat.errors import RallyChatError
from rallychat.messages import Queued
from rallychat.pool.affinity import (
    Asked,
    Crowded,
    How,
    Preempted,
    Priority,
    Slot,
    best,
    unheard,
    until_expendable,
)
from rallychat.pool.background import following, to_leave
from rallychat.pool.fairness import Costs, Shares
from rallychat.pool.line import Pace, Waiting, late, to_refuse
from rallychat.pool.people import harmless, in_turn, spared, to_make_way, unwatched_to_leave
from rallychat.pool.strain import Strain

LOOK = 64
"""Tokens served between two looks at whether somebody has by now had more than who waits, or a batch too much."""
LATELY = 60.0
"""Seconds after a person was here in which the next is reckoned with."""


class SlotQueue:
    """Admission to the slots of one engine.

    Args:
        slots: how many answers the engine generates at a time.
        limit: how many requests may wait; one more is refused with `Busy`.
    """

    def __init__(self, slots: int, *, limit: int) -> None:
        self._slots = [Slot(index) for index in range(slots)]
        self._limit = limit
        self._line: list[Waiting] = []
        self._arrivals = itertools.count()
        self._open = False
        self._calm = asyncio.Event()
        self._rollback = True
        self._pausing = True
        self._pace = Pace(slots)
        self._unseen = 0.0
        self._changes = 0  # in who is served, and who of them is told something
        self._people_at = -LATELY
        self._again: asyncio.TimerHandle | None = None  # a look at whether somebody may have a slot by now
        self._shares = Shares()
        self._strain = Strain()
        self.costs = Costs()
        self.by_user = True
        """False: people are served in order of arrival, which is what measurements compare with."""
        self.on_said: Callable[[str, int], None] | None = None
        """Hears of the tokens said to each user, for measurements."""
        self.pauses = 0
        """Answers of people that made way for others."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All of them."""
        return tuple(self._slots)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.busy for slot in self._slots)

    @property
    def writing(self) -> int:
        """Slots in use whose prompt is read, as far as somebody asked for it: what they say shares each step."""
        return sum(slot.busy and not slot.reading for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def people(self) -> bool:
        """A person is served or waits."""
        return any(s.holder is Priority.CHAT for s in self._slots) or any(w.person for w in self._line)

    @property
    def pressed(self) -> bool:
        """A person waits: for a slot, or for a first token."""
        return any(slot.reading for slot in self._slots) or any(w.person for w in self._line)

    @property
    def lately(self) -> bool:
        """A person is here or was a moment ago: the next may come at any time."""
        return self.people or time.monotonic() - self._people_at < LATELY

    async def calm(self) -> None:
        """Waits until no person is served or waits: what is prepared for later is planned then, too."""
        while self.people:
            self._calm.clear()
            await self._calm.wait()

    def others(self, session: str) -> bool:
        """People of other conversations are being answered."""
        return any(s.holder is not None and s.holder.foreground and s.session != session for s in self._slots)

    def begun(self, slot: Slot) -> None:
        """The first token of an answer that somebody asked for is there."""
        if slot.reading:
            slot.reading = False
            self._changes += 1
            slot.spoke_at = self._changes
            self._grant()

    def spoke(self, slot: Slot, seconds: float) -> None:
        """A token, not the first, took so long: that counts where nobody came or went meanwhile."""
        same, slot.spoke_at = slot.spoke_at == self._changes, self._changes
        if same and slot.holder is Priority.CHAT and not self.pressed:
            self._strain.said(self.busy, seconds)

    @property
    def idle(self) -> bool:
        """Nobody is served and nobody waits."""
        return not self.busy and not self._line

    def waiting_of(self, priority: Priority) -> int:
        """Requests in line, of one kind."""
        return sum(waiting.priority == priority for waiting in self._line)

    def charge(self, slot: Slot, tokens: float, *, said: int = 0) -> None:
        """Tokens were served to who has the slot."""
        slot.said += said
        if slot.holder is None or not slot.holder.foreground:
            return
        self._shares.charge(slot.user, tokens)
        if said and self.on_said is not None:
            self.on_said(slot.user, said)
        self._unseen += tokens
        if self._unseen >= LOOK:
            self._grant()

    def resume(self, *, rollback: bool = True, pausing: bool = True) -> None:
        """The engine is ready and its caches are empty: slots may be granted.

        Args:
            rollback: it can drop the tail of a cache; if not, a cache is reused whole or not at all.
            pausing: an answer can go on in another request, because its tokens are known.
        """
        self._rollback, self._pausing = rollback, pausing
        for slot in self._slots:
            slot.ids, slot.session, slot.stale, slot.spare = [], "", False, False
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

    def forget(self, *, session: str = "", user: str = "") -> None:
        """Nobody comes back for what slots hold of that conversation, or of any of that user's."""
        for slot in self._slots:
            if (session and slot.session == session) or (user and slot.user == user):
                slot.stale = True

    def settle(self, session: str, slot: Slot) -> None:
        """The conversation's prompt is in `slot` from now on: its other slots may be taken by anybody."""
        slot.stale = False
        for other in self._slots:
            if session and other.session == session and other is not slot:
                other.stale = True
                slot.used_at = max(slot.used_at, other.used_at)

    @asynccontextmanager
    async def slot(self, ids: list[int], **how: Unpack[How]) -> AsyncIterator[Slot]:
        """A slot for a prompt of `ids`, as long as the context is open.

        The user of the slot sets `slot.ids` to what the cache then holds, and leaves when `slot.wanted` is set.

        Args:
            ids: the prompt.
            how: see `How`.

        Raises:
            Busy: too many are waiting. Full: and they are other people's.
            Late: its turn did not come by then, or by all that is known cannot.
            Crowded: background work would harm others; a batch waits instead.
        """
        asked = Asked(ids, **how)
        person = asked.priority is Priority.CHAT
        if person:
            self._shares.join(asked.user)
        try:
            slot = await self._acquire(asked)
            started = time.monotonic()
            try:
                yield slot
                if person and not (slot.wanted.is_set() or asked.again):  # whole, and in one go
                    self._pace.answered(time.monotonic() - started, slot.said)
            except Preempted:
                slot.paused = asked.priority.foreground
                raise
            finally:
                self._release(slot)
        finally:
            if person:
                self._shares.leave(asked.user)
            self._grant()

    def _release(self, slot: Slot) -> None:
        if slot.holder is Priority.CHAT:
            self._people_at = time.monotonic()
        self._changes += 1
        slot.free()

    async def _acquire(self, asked: Asked) -> Slot:
        self._admit(asked)
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiting = Waiting(int(asked.priority), next(self._arrivals), asked, future, asked.notify)
        if asked.until is not None:
            waiting.notify = unheard  # until it is known that it may wait
        self._line.append(waiting)
        self._grant()
        left = None if asked.until is None else asked.until - time.monotonic()
        if left is not None and not future.done():
            if self._open and self._pace.over(left, waiting.position):
                self._line.remove(waiting)
                self._grant()
                raise late(waiting, "cannot", retry_after=self._pace.estimate(waiting.position))
            waiting.notify = asked.notify
            asked.notify(Queued(waiting.position, waiting.seconds))
        try:
            async with asyncio.timeout(left):
                return await self._granted(waiting)
        except TimeoutError:
            raise late(waiting, "did not", retry_after=self._pace.estimate(waiting.position)) from None

    async def _granted(self, waiting: Waiting) -> Slot:
        future = waiting.granted
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())  # granted in the same step as the cancel
            if waiting in self._line:
                self._line.remove(waiting)
            raise

    def _admit(self, asked: Asked) -> None:
        """Refuses who finds the line full, unless another has more in it: then that one's newest is refused."""
        if asked.again:
            return
        person = asked.priority is Priority.CHAT
        idle = [slot for slot in self._slots if not slot.busy]
        if person and self._open and self._without_spared(idle, asked):
            return
        line = [w for w in self._line if w.person is person and not w.granted.done()]
        newest = to_refuse(asked, line, self._pace, limit=self._limit, by_user=person and self.by_user)
        if newest is not None:
            self._line.remove(newest)

    def _grant(self) -> None:
        self._unseen = 0.0
        if not self.people:
            self._calm.set()
        self._line = [waiting for waiting in self._line if not waiting.granted.done()]
        people = self._in_turn([waiting for waiting in self._line if waiting.person])
        self._make_way(people)
        for waiting in people if self._open else ():
            self._give(waiting)
        self._serve_background()
        if self._open and self.people and not self.pressed and not any(s.beside for s in self._slots):
            beside = next((waiting for waiting in sorted(self._line) if waiting.asked.beside), None)
            if beside is not None:
                self._give(beside)
        rest = sorted(waiting for waiting in self._line if not waiting.person)
        for position, waiting in enumerate([*(w for w in people if w in self._line), *rest], start=1):
            waiting.stands(position, self._pace.estimate(position))

    def _in_turn(self, line: Sequence[Waiting]) -> list[Waiting]:
        if not self.by_user:
            return list(line)
        return in_turn(line, self._slots, self._shares, tokens=self._pace.tokens)

    def _make_way(self, people: list[Waiting]) -> None:
        """Tells those to leave who are in the way of somebody who goes first."""
        if self.people:
            staying = harmless(len(people), self._slots, self._room(), pressed=self.pressed)
            for slot in self._slots:
                behind = slot.busy and not (slot.holder or Priority.CHAT).foreground
                if behind and slot not in staying and (self.pressed or not slot.beside):
                    slot.wanted.set()
            for slot in unwatched_to_leave(len(people), self._slots):
                slot.wanted.set()
            if people and self._pausing and self._open and self.by_user:
                for slot in to_make_way(people, self._slots, self._shares):
                    slot.wanted.set()
                    self.pauses += 1
        elif (last := to_leave(self._line, self._slots)) is not None:
            last.wanted.set()

    def _room(self) -> int:
        """Lines of a batch that may be worked on beside people."""
        answers = sum(slot.holder is not None and slot.holder.foreground for slot in self._slots)
        return self._strain.room(answers, len(self._slots) - answers)

    def _serve_background(self) -> None:
        """What may go on now gets a slot; what finds none without harm lets others go first."""
        passed_over: list[Waiting] = []
        while self._open and not all(slot.busy for slot in self._slots):
            first = self._next_of_background(passed_over)
            if first is None:
                return
            if not self._give(first):
                passed_over.append(first)

    def _next_of_background(self, passed_over: list[Waiting]) -> Waiting | None:
        line = [w for w in self._line if not w.person and w not in passed_over]
        if self.people:
            batches = sum(slot.holder is Priority.BATCH for slot in self._slots)
            kinds = {Priority.PATIENT} | ({Priority.BATCH} if batches < self._room() else set())
            line = [] if self.pressed else [w for w in line if w.asked.priority in kinds]
        found = following(line, self._slots)
        if found is None or found.asked.priority is not Priority.PATIENT:
            return found
        return self._in_turn([w for w in line if w.asked.priority is Priority.PATIENT])[0]

    def _give(self, waiting: Waiting) -> bool:
        """Grants a slot, or an error; False while there is none to grant."""
        person = waiting.person
        free = [slot for slot in self._slots if not slot.busy or (person and slot.leaving)]
        free = self._without_spared(free, waiting.asked)
        if not free:
            return False
        slot = best(self._slots, free, waiting.asked, rollback=self._rollback)
        if slot is not None and slot.busy:
            return False  # its own slot comes free within one engine step: better than another's cache
        if slot is None and waiting.asked.priority is Priority.BATCH:
            self._grant_again(min(map(until_expendable, free)))
            return False
        self._line.remove(waiting)
        if slot is None:
            waiting.granted.set_exception(Crowded())
            return True
        for other in self._line:
            other.passed += other.priority > Priority.CHAT and not person
        asked = waiting.asked
        home = self.home(asked.session)
        slot.take(asked)
        self._changes += 1
        if asked.apart == "no":
            self.settle(asked.session, slot)
        elif slot is not home:
            slot.stale = True  # until it is settled, anybody may have it
        if person:
            self._shares.charge(asked.user, 1)  # turns alternate also where nothing was said yet
        waiting.granted.set_result(slot)
        return True

    def _without_spared(self, free: list[Slot], asked: Asked) -> list[Slot]:
        """The slots that this one may have; where there is none, a look again when there may be."""
        if not (self.by_user and asked.priority.foreground):
            return free
        others = [waiting.asked.user for waiting in self._line if waiting.asked.priority.foreground]
        alone = spared(asked, free, self._slots, others)
        if alone and len(alone) == len(free):
            self._grant_again(min(alone.values()))
        return [slot for slot in free if slot.index not in alone]

    def _grant_again(self, seconds: float) -> None:
        """A look in so many seconds, unless there is one before."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, seconds) + 0.01
        if self._again is not None:
            if loop.time() < self._again.when() <= at and not self._again.cancelled():
                return
            self._again.cancel()
        self._again = loop.call_at(at, self._grant)
