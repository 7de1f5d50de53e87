"""Work that a cancelled caller does not cut in two.

A task cancelled inside a driver call leaves its connection in an unknown state, with a transaction open that nobody
will end. So each method of the store runs in a task of its own, and its caller's cancellation waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
    """The method, run `to_the_end`."""

    @wraps(method)
    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await to_the_end(method(*args, **kwargs))

    return run
