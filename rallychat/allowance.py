"""What a user may take: answers at a time, requests and tokens a minute; as an admin has set it for them, else as the
settings say for everybody. Counted here alone: another process counts for itself, and a restart begins anew."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rallychat.errors import Limited, NotFound
from rallychat.identity import LOCAL_USER, current
from rallychat.settings import Settings
from rallychat.store.account_types import NO_LIMITS, Limits, User

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a limit, and after how many seconds all of it is there again, if nothing more is taken."""

    limit: int
    remaining: int
    reset: float


@dataclass(slots=True)
class Standing:
    """How somebody stands within their limits a minute, by what they count: `requests`, `tokens`."""

    left: dict[str, Left] = field(default_factory=dict)


_heard: ContextVar[Standing | None] = ContextVar("standing", default=None)


@contextmanager
def hearing() -> Generator[Standing]:
    """A standing that is filled in as soon as who asks, until the block ends, has begun an answer or was refused."""
    standing = Standing()
    token = _heard.set(standing)
    try:
        yield standing
    finally:
        _heard.reset(token)


def limits_of_all(settings: Settings) -> Limits:
    """What everybody with an account may take for whom an admin has set nothing else."""
    return Limits(
        settings.user_concurrent,
        settings.user_requests_per_minute,
        settings.user_tokens_per_minute,
        settings.user_stored_bytes,
    )


class Allowances:
    """Who has taken how much within the last minute.

    Args:
        find: the user of an id.
        running: how many answers are being made for a user.
        default: what counts where nothing was set for a user.
        clock: seconds, ever growing.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[User]],
        running: Callable[[str], int],
        *,
        default: Limits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._running = running
        self._default = default
        self._clock = clock
        self._taken: dict[str, deque[tuple[float, int]]] = {}
        self._beginning: dict[asyncio.Task[object], str] = {}
        """Tasks that may begin an answer and have not yet, and for whom: many at once are as many."""

    async def take(self) -> None:
        """Whoever asks begins an answer; say `began` once it counts as running.

        Raises:
            Limited: not yet; says which limit, and when.
        """
        user, limits = current().id, await self.limits()
        if limits == NO_LIMITS:
            return
        taken, now = self._recent(user), self._clock()
        requests, tokens = sum(not count for _, count in taken), sum(count for _, count in taken)
        self._tell(limits, taken, now)
        running = self._running(user) + self._others_beginning(user)
        if limits.concurrent is not None and running >= limits.concurrent:
            raise Limited(
                f"You have {running} answers running, and your limit is {limits.concurrent}.",
                retry_after=5,
                hint="wait for one to end, or stop one",
            )
        if limits.requests_per_minute is not None and requests >= limits.requests_per_minute:
            oldest = [at for at, count in taken if not count][-limits.requests_per_minute]
            raise Limited(
                f"Your limit is {limits.requests_per_minute} requests a minute.",
                retry_after=oldest + MINUTE - now,
                hint="wait, or ask an admin for more",
            )
        if limits.tokens_per_minute is not None and tokens >= limits.tokens_per_minute:
            for at, count in taken:  # noqa: B007 - the one whose leaving makes room
                tokens -= count
                if tokens < limits.tokens_per_minute:
                    break
            raise Limited(
                f"Your limit is {limits.tokens_per_minute} tokens a minute.",
                retry_after=at + MINUTE - now,
                hint="wait, or ask an admin for more",
            )
        taken.append((now, 0))
        self._tell(limits, taken, now)
        if (task := asyncio.current_task()) is not None and task not in self._beginning:
            self._beginning[task] = user
            task.add_done_callback(self._ended)

    def began(self) -> None:
        """The answer that this task was to begin counts as running from now on."""
        if (task := asyncio.current_task()) is not None:
            self._ended(task)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._beginning.pop(task, None)

    def _others_beginning(self, user: str) -> int:
        here = asyncio.current_task()
        return sum(whose == user and task is not here for task, whose in self._beginning.items())

    async def limits(self) -> Limits:
        """What whoever asks may take. The one local person, and who has no account, may take what there is."""
        user = current().id
        if user == LOCAL_USER:
            return NO_LIMITS
        try:
            return (await self._find(user)).limits.over(self._default)
        except NotFound:
            return NO_LIMITS

    def _tell(self, limits: Limits, taken: deque[tuple[float, int]], now: float) -> None:
        standing = _heard.get()
        if standing is None:
            return
        requests, tokens = [at for at, count in taken if not count], [it for it in taken if it[1]]
        of_both = {
            "requests": (limits.requests_per_minute, len(requests), requests[-1:]),
            "tokens": (limits.tokens_per_minute, sum(n for _, n in tokens), [at for at, _ in tokens[-1:]]),
        }
        for name, (limit, used, last) in of_both.items():
            if limit is not None:
                reset = last[0] + MINUTE - now if last else 0.0
                standing.left[name] = Left(limit, max(0, limit - used), reset)

    def spent(self, tokens: int) -> None:
        """An answer has ended: tokens of prompt and answer."""
        if tokens:
            self._recent(current().id).append((self._clock(), tokens))

    def _recent(self, user: str) -> deque[tuple[float, int]]:
        gone = self._clock() - MINUTE
        for name in [n for n, taken in self._taken.items() if n != user and taken and taken[-1][0] <= gone]:
            del self._taken[name]
        found = self._taken.setdefault(user, deque())
        while found and found[0][0] <= gone:
            found.popleft()
        return found
