"""Whose line is next: user by user, of each user batch by batch, one model at a time. Pure scheduling."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

QUANTUM = 300.0
"""Seconds after which lines of another model get their turn: loading one takes a while."""

_Line = dict[str, dict[str, deque[asyncio.Future[None]]]]


class Turns:
    """Admission of lines, in front of the queue of the engine.

    Args:
        width: lines of a model that are worked on at the same time.
        quantum: seconds one model has while others wait.
    """

    def __init__(
        self,
        width: Callable[[str], int],
        *,
        quantum: float = QUANTUM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._width = width
        self._quantum = quantum
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._model = ""
        self._since = 0.0
        self._running = 0

    @asynccontextmanager
    async def turn(self, model: str, user: str, batch: str) -> AsyncIterator[None]:
        """Waits until it is this batch's turn; the turn lasts as long as the block."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(model, {}).setdefault(user, {}).setdefault(batch, deque()).append(future)
        self._grant()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._running -= 1  # granted in the same step as the cancel
            self._grant()
            raise
        try:
            yield
        finally:
            self._running -= 1
            self._grant()

    def _grant(self) -> None:
        self._tidy()
        while (line := self._line()) is not None and self._running < self._width(self._model):
            user, batches = next(iter(line.items()))
            batch, waiting = next(iter(batches.items()))
            waiting.popleft().set_result(None)
            self._running += 1
            batches[batch] = batches.pop(batch)  # to the end of the row
            line[user] = line.pop(user)
            self._tidy()

    def _line(self) -> _Line | None:
        """Those who wait for the model whose turn it is."""
        own = self._lines.get(self._model)
        others = next((model for model in self._lines if model != self._model), None)
        if others is not None and (own is None or self._clock() - self._since > self._quantum):
            if self._running:
                return None  # until the last of this model is done
            self._model, self._since = others, self._clock()
            own = self._lines.pop(others)
            self._lines[others] = own
        return own

    def _tidy(self) -> None:
        """Forgets who left, and rows that are empty."""
        for model, line in list(self._lines.items()):
            for user, batches in list(line.items()):
                for batch, waiting in list(batches.items()):
                    while waiting and waiting[0].done():
                        waiting.popleft()
                    if not waiting:
                        del batches[batch]
                if not batches:
                    del line[user]
            if not line:
                del self._lines[model]
