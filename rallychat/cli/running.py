"""How a command runs: in an event loop of its own, ending with its exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

import typer


def debugging() -> bool:
    """Were tracebacks asked for?"""
    return os.environ.get("RALLYCHAT_DEBUG", "") not in ("", "0")


def run(work: Coroutine[Any, Any, int | None]) -> None:
    """Run `work` in a fresh event loop, uvloop where there is one, and end with its exit code."""
    if sys.platform == "win32":
        factory = None
    else:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(work)
    if code:
        raise typer.Exit(code)
