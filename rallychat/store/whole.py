"""Work that a cancelled caller does not cut in two.

A task cancelled inside a driver call leaves its connection in an unknown state, with a transaction open that nobody
will end. So each method of the store runs in a task of its own, and its caller's cancellation waits for that.
Being one transaction, it is also run again where the database undid it for another one's sake.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from rallychat.errors import StoreUnavailable

ATTEMPTS = 6
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Again(StoreUnavailable):
    """The database undid the transaction because of another one: it may well succeed the next time."""


async def again(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The result of `work`, one transaction; several attempts if need be."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await work()
        except Again:
            await asyncio.sleep(random.random() * 0.02 * 2**attempt)  # noqa: S311 - so that two do not meet again
    return await work()


async def to_the_end(
    work: Coroutine[Any, Any, _T], *, abandoned: Callable[[_T], Coroutine[Any, Any, object]] | None = None
) -> _T:
    """Awaits `work`. A cancellation of the caller is raised once `work` is done.

    `abandoned`: called with the result of `work` then, for the caller never gets it.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.cancelled() and task.exception() is None and abandoned is not None:
        await to_the_end(abandoned(task.result()))
    raise cancelled


def whole(method: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """The method, run `to_the_end`, `again` where need be."""

    @wraps(method)
    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await to_the_end(again(lambda: method(*args, **kwargs)))

    return run
