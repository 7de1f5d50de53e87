"""Which slot serves a request best: the one that holds most of its prompt, or one whose loss hurts little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, TypedDict

from rallychat.engines.slots import reusable
from rallychat.identity import current
from rallychat.messages import Queued

Notify = Callable[[Queued], None]
"""Hears the place in line and how long it may take, whenever that changes."""
Apart = Literal["no", "rather", "only"]
"""Whether a request stays out of the slot that holds its conversation's prompt: where another can be had, or always."""
UNUSED = 60.0
"""Seconds after which a batch, or a measurement, may take the slot of a cache that nobody came back for."""


class Priority(IntEnum):
    """Lower goes first. `WARMING` to `TITLES` and `BATCH` run only while nobody waits or is answered.

    `PATIENT` is an answer that somebody has asked for and does not watch: it goes on beside people where a slot is
    left, and makes way for who finds none.
    """

    CHAT = 0
    WARMING = 10
    COMPACTION = 20
    TITLES = 30
    PATIENT = 35
    BATCH = 40

    @property
    def foreground(self) -> bool:
        """An answer somebody asked for; it is part of their share."""
        return self in (Priority.CHAT, Priority.PATIENT)

    @property
    def preparing(self) -> bool:
        """Nobody asked for it: it is for what somebody may ask next."""
        return self in (Priority.WARMING, Priority.COMPACTION, Priority.TITLES)


class Preempted(Exception):
    """Somebody who goes first wants the slot: of background work, or of a user who has more than others. Try again."""


class Crowded(Exception):
    """No slot can be had without harm to a conversation that is worth more."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What a slot's cache holds, and whose it is; of an answer that was `paused`, it will be gone on with for sure."""

    user: str
    session: str
    ids: list[int]
    paused: bool = False


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the engine.

    Attributes:
        ids: what its cache holds, as far as is known.
        session: the conversation it belongs to, or empty.
        user: whose it is; of another's cache nothing is reused.
        stale: that conversation has its prompt elsewhere now.
        holder: priority of who has it; None: it is idle.
        wanted: set when who has it is to leave.
        asked: what who has it asked for.
        said: tokens it has said since it was granted.
        beside: who has it goes on while people are answered.
        reading: an answer somebody asked for has it, and waits for the first token.
        spoke_at: how often it had changed who is served when its newest token came.
        spare: a batch or a measurement had it last: nobody will come back for its cache.
        paused: an answer that made way had it last.
        left: what it held, and somebody will come back for, when who has it was given it.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    session: str = ""
    user: str = ""
    stale: bool = False
    used_at: float = 0.0
    holder: Priority | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    asked: Asked | None = None
    said: int = 0
    beside: bool = False
    reading: bool = False
    spoke_at: int = -1
    spare: bool = False
    paused: bool = False
    left: Cache | None = None

    @property
    def busy(self) -> bool:
        """Somebody has it."""
        return self.holder is not None

    @property
    def preparing(self) -> bool:
        """Who has it prepares something for later, while nobody is answered."""
        return self.holder is not None and self.holder.preparing and not self.beside

    @property
    def urgency(self) -> tuple[int, float]:
        """Of what has it; see `Asked`."""
        return self.asked.urgency if self.asked else (0, 0.0)

    @property
    def leaving(self) -> bool:
        """Who has it was told to leave."""
        return self.busy and self.wanted.is_set()

    def take(self, asked: Asked) -> None:
        """It is that request's from now on, and its conversation's; another user's cache is forgotten."""
        keep = self.ids and not (self.stale or self.spare)
        self.left = Cache(self.user, self.session, self.ids, self.paused) if keep else None
        self.paused = False
        if self.user != asked.user:
            self.user, self.ids = asked.user, []
        if self.session != asked.session:
            self.session, self.used_at = asked.session, 0.0
        self.holder, self.asked, self.said, self.spoke_at = asked.priority, asked, 0, -1
        self.beside, self.reading = asked.beside, asked.priority.foreground
        self.spare = asked.for_nobody
        self.wanted.clear()

    def free(self) -> None:
        """Who had it has left."""
        if self.holder is not None and self.holder.foreground:
            self.used_at = time.monotonic()
        elif self.holder is Priority.WARMING and self.asked is not None:
            self.used_at = max(self.used_at, self.asked.since)
        self.holder = self.asked = None
        self.beside = self.reading = False
        self.wanted.clear()


class How(TypedDict, total=False):
    """How a slot is asked for; what is not given is as `Asked` has it: an answer that a person waits for."""

    notify: Notify
    """Hears the position in line."""
    priority: Priority
    """Who goes first."""
    session: str
    """The conversation; background work takes no slot that was used later than this one's, or later than `since` where
    it has none."""
    apart: Apart
    """Whether to stay out of the conversation's own slot."""
    beside: bool
    """Background work that may go on while people are answered; in short steps, for all feel each."""
    since: float
    """When it was first asked, by the monotonic clock; now, if not given."""
    until: float | None
    """When it waits no longer, by the monotonic clock; None: it waits as long as that takes."""
    again: bool
    """It had a slot before and goes on in another: it is not refused, however full the line is."""


def unheard(_: Queued) -> None:
    """A place in line that nobody is told of."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of the slots: for a prompt of `ids`, and `How`. It is its person's."""

    ids: list[int]
    notify: Notify = unheard
    priority: Priority = Priority.CHAT
    session: str = ""
    apart: Apart = "no"
    beside: bool = False
    since: float = field(default_factory=time.monotonic)
    until: float | None = None
    again: bool = False
    user: str = field(default_factory=lambda: current().id)

    @property
    def for_nobody(self) -> bool:
        """Nobody will come back for its cache: a batch, a measurement."""
        return self.priority is Priority.BATCH or not (self.priority.foreground or self.session)

    @property
    def urgency(self) -> tuple[int, float]:
        """Less goes first: of what is prepared, that of who was seen last, for they may speak next."""
        return self.priority, -self.since if self.priority.preparing else self.since


def best(slots: Sequence[Slot], free: Sequence[Slot], asked: Asked, *, rollback: bool) -> Slot | None:
    """The free slot whose cache serves a request best; another conversation's cache is spared if possible.

    A stranger gets an empty slot, or one of the older three quarters, next to slots in use: llama.cpp computes
    neighbouring slots in one batch, scattered ones in several (measured: 30 % slower with every other slot).
    """
    mine = [slot for slot in slots if asked.session and slot.session == asked.session and not slot.stale]
    shared = {
        slot.index: reusable(slot.ids, asked.ids, rollback=rollback) if slot.user == asked.user else 0
        for slot in free
    }
    others = [slot for slot in free if slot not in mine or asked.apart == "no"]
    if asked.for_nobody and (asked.priority is Priority.BATCH or len(slots) > 1):
        others = [slot for slot in others if until_expendable(slot) <= 0]
    kin = [s for s in others if s.ids and (s in mine or shared[s.index] * 2 >= len(s.ids))]
    if not asked.priority.foreground:
        kin = [slot for slot in kin if slot.stale or slot.session == asked.session]
    if kin:
        return max(kin, key=lambda slot: (shared[slot.index], slot.used_at))
    if asked.priority.foreground:
        others = _without_harm(others)
    elif asked.priority is not Priority.BATCH:
        until = max((slot.used_at for slot in mine), default=asked.since)
        others = [slot for slot in others if not slot.ids or slot.stale or slot.used_at < until]
    if not others:
        own = [slot for slot in mine if slot in free]
        return own[0] if own and asked.apart != "only" else None
    spared = max(len(others) // 4, int(len(others) > 1))  # those used last
    oldest = sorted(others, key=lambda slot: slot.used_at)[: len(others) - spared]
    empty = [slot for slot in others if not slot.ids]
    unused = empty or [slot for slot in others if slot.stale or slot.spare] or oldest
    expendable = {slot.index: slot for slot in unused}
    return expendable[_neighbour(sorted(expendable), [slot.index for slot in slots if slot.busy])]


def until_expendable(slot: Slot) -> float:
    """Seconds until nobody will come back for what the slot holds, so that a batch may have it."""
    if not slot.ids or slot.stale or slot.spare:
        return 0.0
    return slot.used_at + UNUSED - time.monotonic()


def _without_harm(free: list[Slot]) -> list[Slot]:
    """Those a stranger chooses from: waits for nobody to leave, unless for a batch whose slot costs nobody a cache."""
    idle = [slot for slot in free if not slot.busy]
    if any(not slot.ids or slot.stale or slot.spare for slot in idle):
        return idle
    return [slot for slot in free if slot.spare] or idle or free


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
