"""Whose turn it is among people: by user, not by request. Pure; knows neither slots' caches nor the event loop.

Each user has a counter of the service received: tokens, those of prompts by what they cost on this engine. The next
turn is that of who holds fewer slots than a fair share and has received least ("Fairness in Serving Large Language
Models", Sheng et al., OSDI 2024: the virtual token counter). Who comes back from a pause starts where the least
served is, so that nobody saves up; and nobody falls behind by more than `DEBT`, however much was used while there
was nobody else.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

DEBT = 2048.0
"""Tokens that a user can be ahead of the least served one; what goes beyond is forgotten."""
QUANTUM = 512.0
"""Tokens somebody must be ahead of who waits with nothing, before an answer of theirs is paused."""
SLICE = 64
"""Tokens an answer says, at least, between two such pauses: to go on costs reading it again."""
STRETCH = 16
"""Tokens of a prompt whose time says what reading takes."""
ODD = 10.0
"""Times as long as usual that a stretch may take and count for."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A person's request, waiting or served.

    Args:
        user: whose it is.
        since: when it was first asked, in seconds of any clock.
        talk: it belongs to a conversation; in its user's own line it goes before those that do not.
        said: tokens it has said since it was granted its slot.
    """

    user: str
    since: float
    talk: bool = False
    said: int = 0


class Shares:
    """Service received, by user. A user is active while something of theirs waits or is served."""

    def __init__(self) -> None:
        self._active: Counter[str] = Counter()
        self._served: dict[str, float] = {}

    def join(self, user: str) -> None:
        """A request of this user begins to wait."""
        if not self._active:
            self._served.clear()
        floor = self._floor()
        self._served = {
            name: served for name, served in self._served.items() if name in self._active or served > floor
        }
        if user not in self._active:
            self._served[user] = max(self._served.get(user, floor), floor)
        self._active[user] += 1

    def leave(self, user: str) -> None:
        """A request of this user is over, or was given up."""
        self._active[user] -= 1
        if not self._active[user]:
            del self._active[user]

    def charge(self, user: str, tokens: float) -> None:
        """Tokens were served to this user, who need not be active."""
        served = self._served.get(user, 0.0)
        if user not in self._active:
            served = max(served, self._floor())
        self._served[user] = served + tokens

    def standings(self) -> Mapping[str, float]:
        """Tokens each user is ahead of the least served active one, debts beyond the limit forgotten."""
        floor = self._floor()
        self._served = {name: min(served, floor + DEBT) for name, served in self._served.items()}
        return defaultdict(float, {name: served - floor for name, served in self._served.items()})

    @property
    def users(self) -> int:
        """Those who are active."""
        return len(self._active)

    def _floor(self) -> float:
        return min((self._served.get(user, 0.0) for user in self._active), default=0.0)


def order(
    waiting: Sequence[Claim],
    held: Mapping[str, int],
    standings: Mapping[str, float],
    *,
    slots: int,
    cost: float,
) -> Iterator[int]:
    """Indices of `waiting` in the order in which their turns come.

    Args:
        held: slots each user has.
        standings: how far each user is ahead.
        slots: how many there are.
        cost: tokens an answer is served on average.
    """
    lines: dict[str, list[int]] = {}
    for index in sorted(range(len(waiting)), key=lambda n: (not waiting[n].talk, waiting[n].since)):
        lines.setdefault(waiting[index].user, []).append(index)
    share = max(1, slots // max(1, len(lines.keys() | {user for user, count in held.items() if count})))
    turns = []
    for user, line in lines.items():
        has, ahead = held.get(user, 0), standings[user]
        first = waiting[line[0]].since
        turns.append((has >= share, ahead, first, user, has, iter(line)))
    heapq.heapify(turns)
    while turns:
        _, ahead, _, user, has, line_of = heapq.heappop(turns)
        for index in line_of:
            yield index
            following = (has + 1 >= share, ahead + cost, waiting[index].since, user, has + 1, line_of)
            heapq.heappush(turns, following)
            break


def to_pause(
    claim: Claim, served: Sequence[Claim], held: Mapping[str, int], standings: Mapping[str, float]
) -> int | None:
    """The index of the answer in `served` that makes way for `claim`; None: it waits for an end.

    Of who holds at least two slots more; or, where `claim`'s user holds none, of who is far ahead; or of the same
    user, who talks while requests that belong to no conversation fill several slots. Always the newest.
    """
    mine, ahead = held.get(claim.user, 0), standings[claim.user]
    aside = Counter(other.user for other in served if not other.talk)

    def makes_way(other: Claim) -> bool:
        if other.user == claim.user:
            return claim.talk and not other.talk and aside[other.user] >= 2
        if held.get(other.user, 0) >= mine + 2:
            return True
        return not mine and other.said >= SLICE and standings[other.user] > ahead + QUANTUM

    found = [index for index, other in enumerate(served) if makes_way(other)]
    if not found:
        return None
    return max(
        found,
        key=lambda n: (
            held.get(served[n].user, 0),
            standings[served[n].user],
            not served[n].talk,
            served[n].since,
        ),
    )


class Rate:
    """Seconds a token takes, over about the last `memory` tokens: a long stretch says more than a short one."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._tokens = self._seconds = 0.0

    @property
    def value(self) -> float:
        """Seconds; 0 as long as nothing was measured."""
        return self._seconds / self._tokens if self._tokens else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """So many tokens took so long. A process that was stopped meanwhile does not count for all it slept."""
        if self._seconds:
            seconds = min(seconds, ODD * self.value * tokens)
        kept = self._memory / (self._memory + tokens)
        self._tokens, self._seconds = self._tokens * kept + tokens, self._seconds * kept + seconds


class Costs:
    """What a token of a prompt costs an engine, against one that is said; measured as both are served."""

    def __init__(self) -> None:
        self._read, self._said = Rate(2048), Rate(256)

    def read(self, tokens: int, seconds: float) -> None:
        """A stretch of a prompt was evaluated. Of a few tokens most is the price of any step: they say nothing."""
        if tokens >= STRETCH:
            self._read.add(tokens, seconds)

    def say(self, tokens: int, seconds: float) -> None:
        """Tokens were said, in so much of the engine's time."""
        self._said.add(tokens, seconds)

    @property
    def reading(self) -> float:
        """Seconds that a token of a prompt takes; 0 as long as none was read."""
        return self._read.value

    @property
    def of_prompt(self) -> float:
        """Said tokens that one of a prompt is worth."""
        read, said = self._read.value, self._said.value
        return min(1.0, max(0.01, read / said)) if read and said else 0.25
