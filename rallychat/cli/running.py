"""How a command runs: in an event loop of its own, ending with its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any

import typer

from rallychat.signals import endings, on_signals


def debugging() -> bool:
    """Were tracebacks asked for?"""
    return os.environ.get("RALLYCHAT_DEBUG", "") not in ("", "0")


def run(work: Coroutine[Any, Any, int | None]) -> None:
    """Run `work` in a fresh event loop, uvloop where there is one, and end with its exit code.

    SIGTERM, and a terminal that is closed, end it as Ctrl-C does: what it opened is closed, what it made for itself is
    deleted.
    """
    told = list[signal.Signals]()
    if sys.platform == "win32":
        factory = None
    else:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            code = runner.run(_until_told(work, told))
        except asyncio.CancelledError:
            code = 128 + (told[0] if told else signal.SIGTERM)
    if code:
        raise typer.Exit(code)


async def _until_told(work: Coroutine[Any, Any, int | None], told: list[signal.Signals]) -> int | None:
    mine = asyncio.current_task()
    assert mine is not None

    def end(number: signal.Signals) -> None:
        told.append(number)
        mine.cancel()

    with ExitStack() as stack:
        for number in endings():
            stack.enter_context(on_signals(partial(end, number), number))
        return await work
