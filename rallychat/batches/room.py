"""Idle capacity: the room that people leave to batches."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from rallychat.batches.lines import Line
from rallychat.batches.work import Answer, Outcome
from rallychat.chat import ChatService
from rallychat.pool import Pool

LOOK: Final = 0.25
"""Seconds between two looks at whether there is room."""
REST: Final = 30.0
"""Seconds a model must have been unused before a batch of another one takes its place."""


class Room:
    """What of the engines batches may use.

    Args:
        rest: see `REST`.
    """

    def __init__(self, service: ChatService, *, rest: float = REST) -> None:
        self._service = service
        self._rest = rest

    @property
    def _pool(self) -> Pool:
        return self._service.pool

    def slots(self, model: str) -> int:
        """Sequences that are made at a time."""
        engine = self._pool.find(model)
        told = engine.info.slots if engine is not None and engine.state == "loaded" else None
        return told or self._service.settings.slots

    def width(self, model: str) -> int:
        """Lines that are worked on at a time."""
        return 2 * self.slots(model)  # the next prompts are read and tokenised while the slots are busy

    async def patiently(self, answer: Answer, line: Line, model: str) -> Outcome:
        """The outcome; while people need the place of this model's engine, it is theirs."""
        while True:
            while not self._may_open(model):  # noqa: ASYNC110 - time passing is what it waits for
                await asyncio.sleep(LOOK)
            answering = asyncio.ensure_future(answer(line))
            crowded = asyncio.ensure_future(self._pool.crowded.wait())
            try:
                await asyncio.wait({answering, crowded}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
            finally:
                for task in (answering, crowded):
                    task.cancel()
                await asyncio.gather(answering, crowded, return_exceptions=True)

    def _may_open(self, model: str) -> bool:
        """The model's engine is there, or there is room for it without taking one that people use."""
        if self._pool.crowded.is_set():
            return False
        if self._pool.find(model) is not None:
            return True
        loaded = [engine for engine in self._pool.engines() if engine.state in ("loading", "loaded")]
        if len(loaded) < self._service.settings.max_loaded:
            return True
        since = time.monotonic() - self._rest
        return any(engine.state == "loaded" and engine.idle and engine.used_at < since for engine in loaded)
