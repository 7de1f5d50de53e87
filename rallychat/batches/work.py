"""Works through lines: several at a time, their outcomes in order. Knows nothing of models; `answer` does each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from rallychat.batches.lines import Line

AHEAD = 64
"""Lines for each slot that may be done, or begun, before the oldest that is not: bounds what is kept in memory."""
SETTLE = 1.0
"""Seconds after which what was recorded is on the disk, even if the power fails."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line: a line of JSON, without its newline. `ok` is False where it tells an error."""

    text: bytes
    ok: bool = True
    tokens: int = 0
    """Generated for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is. `before` of the `done` lines were done by an earlier run."""

    done: int
    failed: int
    before: int = 0
    tokens: int = 0


class Record(Protocol):
    """Where outcomes are kept, and which are known already."""

    @property
    def written(self) -> int:
        """Outcomes in order."""

    @property
    def failed(self) -> int:
        """Of all that are known, errors."""

    @property
    def held(self) -> Mapping[int, Outcome]:
        """Outcomes whose turn has not come."""

    def add(self, index: int, outcome: Outcome) -> None:
        """Keeps the outcome of the line `index` (from 0), which may come before those of earlier lines."""

    def settle(self) -> None:
        """What was added is on the disk when this returns."""


Answer = Callable[[Line], Awaitable[Outcome]]
Tell = Callable[[Progress], None]


async def work(
    lines: AsyncIterator[Line],
    answer: Answer,
    record: Record,
    *,
    width: int,
    ahead: int,
    tell: Tell = lambda _: None,
) -> Progress:
    """Answers every line that `record` has no outcome of.

    Args:
        lines: the input, from its beginning.
        answer: makes one line's outcome. What it raises ends the batch, which can then be resumed.
        width: lines that are worked on at the same time.
        ahead: how far the newest line may be ahead of the oldest that is not done; bounds what is kept in memory.
        tell: hears after each outcome.
    """
    batch = _Batch(answer, record, tell)
    settling = asyncio.create_task(_settle_often(record))
    try:
        index = -1
        async for line in lines:
            index += 1
            if index < record.written or index in record.held:
                continue
            await batch.room(width=width, oldest=index - ahead)
            batch.start(index, line)
        await batch.room(width=1, oldest=index + 1)
    finally:
        settling.cancel()
        await batch.stop()
        record.settle()
    return batch.progress


class _Batch:
    """The lines that are worked on now."""

    def __init__(self, answer: Answer, record: Record, tell: Tell) -> None:
        self._answer = answer
        self._record = record
        self._tell = tell
        self._running: dict[asyncio.Task[Outcome], int] = {}
        done = record.written + len(record.held)
        self.progress = Progress(done, record.failed, before=done)

    async def room(self, *, width: int, oldest: int) -> None:
        """Waits until fewer than `width` lines run, and none that is older than `oldest`."""
        while len(self._running) >= width or min(self._running.values(), default=oldest) < oldest:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._finish(self._running.pop(task), task.result())

    def start(self, index: int, line: Line) -> None:
        """Begins a line."""

        async def answering() -> Outcome:
            return await self._answer(line)

        self._running[asyncio.create_task(answering())] = index

    def _finish(self, index: int, outcome: Outcome) -> None:
        self._record.add(index, outcome)
        at = self.progress
        failed = at.failed + (not outcome.ok)
        self.progress = Progress(at.done + 1, failed, at.before, at.tokens + outcome.tokens)
        self._tell(self.progress)

    async def stop(self) -> None:
        """Calls off what still runs; what has ended meanwhile is kept."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for task, index in self._running.items():
            if not task.cancelled() and task.exception() is None:
                self._finish(index, task.result())
        self._running.clear()


async def _settle_often(record: Record) -> None:
    with suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(SETTLE)
            await asyncio.to_thread(record.settle)
