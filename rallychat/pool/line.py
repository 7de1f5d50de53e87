"""Those who wait for a slot of one engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rallychat.errors import Busy, Full, Late
from rallychat.messages import Queued
from rallychat.pool.affinity import Asked, Notify, Priority, Slot
from rallychat.pool.fairness import Claim

MOVED = 5.0
"""Seconds by which an estimate must have changed to be told again where the place has not."""


@dataclass(order=True, slots=True)
class Waiting:
    """A request in line; sorted by priority, then arrival."""

    priority: int
    arrival: int
    asked: Asked = field(compare=False)
    granted: asyncio.Future[Slot] = field(compare=False)
    notify: Notify = field(compare=False)
    position: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    passed: int = field(default=0, compare=False)

    @property
    def person(self) -> bool:
        """Somebody watches for the answer."""
        return self.priority == Priority.CHAT

    def stands(self, position: int, seconds: float) -> None:
        """Its place in line, and how long it may take; it is told what is new of that."""
        if self.position != position or abs(self.seconds - seconds) >= MOVED:
            self.position, self.seconds = position, seconds
            self.notify(Queued(position, seconds))

    def claim(self) -> Claim:
        """What counts for its turn."""
        return claim_of(self.asked)


def claim_of(asked: Asked, said: int = 0) -> Claim:
    """What counts for the turn of a request that has said so many tokens since it was granted its slot."""
    return Claim(asked.user, asked.since, bool(asked.session), said)


class Pace:
    """How long answers take lately, and so those who wait.

    Args:
        slots: answers that are made at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds = 5.0
        self._measured = False
        self.tokens = 200.0
        """Of an answer."""

    def answered(self, seconds: float, tokens: int) -> None:
        """An answer took so long, and so many tokens."""
        self._measured = True
        self._seconds += 0.2 * (seconds - self._seconds)
        self.tokens += 0.2 * (tokens - self.tokens)

    def estimate(self, position: int) -> float:
        """Seconds until the turn of this place in line has come."""
        return max(1.0, round(self._seconds * position / self._slots, 1))

    def over(self, seconds: float, position: int) -> bool:
        """By what was measured so far, the turn of this place in line takes longer to come."""
        return self._measured and self._seconds * position / self._slots > seconds


def late(waiting: Waiting, how: str, *, retry_after: float) -> Late:
    """What a request is told whose turn `cannot` come, or `did not`, within the time it gave itself."""
    allowed = (waiting.asked.until or 0.0) - waiting.asked.since
    return Late(
        f"The turn of this request {how} come within {allowed:g} s, which is its timeout.",
        retry_after=retry_after,
        hint="try again later, or give it more time",
    )


def to_refuse(
    asked: Asked, line: Sequence[Waiting], pace: Pace, *, limit: int, by_user: bool
) -> Waiting | None:
    """Who was refused so that one more may wait: the newest of who has most in a full line; None: there is room.

    What had a slot before keeps its place: half of it may have been said.

    Args:
        line: those that wait for the same kind of service.
        by_user: who has more than `asked`'s user makes room; else nobody does.

    Raises:
        Busy: nobody has more. Full: and `asked`'s user has nothing in it.
    """
    if len(line) < limit:
        return None
    lines = Counter(waiting.asked.user for waiting in line)
    newcomers = [waiting for waiting in line if not waiting.asked.again]
    newest = max(newcomers, key=lambda w: (lines[w.asked.user], w.arrival), default=None)
    if by_user and newest is not None and lines[asked.user] + 1 < (most := lines[newest.asked.user]):
        newest.granted.set_exception(_refusal(Busy, most, pace))
        return newest
    others = asked.priority is Priority.CHAT and lines and not lines[asked.user]
    raise _refusal(Full if others else Busy, len(line), pace)


def _refusal(kind: type[Busy], ahead: int, pace: Pace) -> Busy:
    return kind(
        f"{ahead} requests are already waiting for this model.",
        retry_after=pace.estimate(ahead + 1),
        hint="try again later, or raise max_queue",
    )
