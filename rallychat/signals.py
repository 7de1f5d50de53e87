"""What a signal does while something runs. Needs the main thread, as Python itself does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never


@contextmanager
def on_signals(act: Callable[[], object], *numbers: signal.Signals) -> Iterator[None]:
    """Until the block ends, these signals call `act` in the event loop, in place of what they did before."""
    loop = asyncio.get_running_loop()
    before = {number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(act)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def endings() -> tuple[signal.Signals, ...]:
    """What tells a program to end beside Ctrl-C: SIGTERM, and SIGHUP where it is not ignored, as `nohup` has it."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """For what blocks the event loop, which cannot act then: SIGINT and SIGTERM end it where it stands."""
    acts = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _cancelled}
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cancelled(*_: object) -> Never:
    raise asyncio.CancelledError
