"""How a command runs: in an event loop of its own, ending with its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import typer

from rallychat.signals import on_signals


def debugging() -> bool:
    """Were tracebacks asked for?"""
    return os.environ.get("RALLYCHAT_DEBUG", "") not in ("", "0")


def run(work: Coroutine[Any, Any, int | None]) -> None:
    """Run `work` in a fresh event loop, uvloop where there is one, and end with its exit code.

    SIGTERM ends it as Ctrl-C does: what it opened is closed, what it made for itself is deleted.
    """
    if sys.platform == "win32":
        factory = None
    else:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            code = runner.run(_until_told(work))
        except asyncio.CancelledError:
            code = 128 + signal.SIGTERM
    if code:
        raise typer.Exit(code)


async def _until_told(work: Coroutine[Any, Any, int | None]) -> int | None:
    mine = asyncio.current_task()
    assert mine is not None
    with on_signals(mine.cancel, signal.SIGTERM):
        return await work
