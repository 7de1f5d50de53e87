"""`rallychat bench batch --beside 4`: what people who chat notice of a batch that is worked on meanwhile.

Parts of equal length in turn, without the batch and beside it; the people and their conversations go on through all of
them. Prompts of the batch are new each time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rallychat.api.batch_lines import BatchLines
from rallychat.batches import Line
from rallychat.bench.folders import apart
from rallychat.bench.heard import Heard
from rallychat.bench.serve import QUESTION, SUBJECTS
from rallychat.bench.talk import questions, thinks
from rallychat.bench.turns import share, wish_to_stop
from rallychat.bench.ways import begun
from rallychat.chat import ChatService
from rallychat.identity import acting_as
from rallychat.settings import Settings

PATIENCE = 5.0
"""Seconds that who has asked when a part ends is still waited for, at most."""
OWNER = "batch"
ARMS = ("alone", "beside a batch")
LONGEST = 1024 * 1024


@dataclass(slots=True)
class _Seen:
    heard: Heard = field(default_factory=Heard)
    unanswered: int = 0
    lines: int = 0
    tokens: int = 0


async def run_beside(
    settings: Settings,
    *,
    people: int = 4,
    rounds: int = 4,
    minutes: float = 6.0,
    max_tokens: int = 64,
    think: float = 2.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row per arm; Ctrl-C ends it early with what there is.

    Columns: `median_first_ms`, `p95_first_ms` and `p95_gap_ms` (between two arrivals of text) of the people,
    `first_of_alone` and `gap_of_alone` (p95 against the first arm), `answers` begun and `unanswered` at the end of a
    part (they count with what they had waited), `batch_lines` and `batch_tokens` done meanwhile.

    Args:
        settings: with `slots` not set, there are two for each person.
        minutes: how long all parts take together.
        think: seconds, on average, between an answer and its person's next question.
    """
    seen = {name: _Seen() for name in ARMS}
    seconds = 60 * minutes / (rounds * len(ARMS))
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made, wish_to_stop() as stop:
        # what this machine's budget is costs minutes to find out: both arms do without
        own = apart(settings, Path(made)).model_copy(update={"latency_factor": 0.0})
        if "slots" not in settings.model_fields_set:
            own = own.model_copy(update={"slots": 2 * people})
        tell(f"{rounds} rounds of {len(ARMS)} parts, {seconds:.1f} s each, {own.slots} slots; loading")
        async with begun(own) as service:
            chats = [(await service.store.create()).id for _ in range(people)]
            told = questions(None)
            lines, pauses = _lines(max_tokens), thinks(think)
            for number in range(rounds):
                for name in ARMS if number % 2 == 0 else reversed(ARMS):
                    if stop.is_set():
                        break
                    found = seen[name]
                    width = 2 * own.slots if name != ARMS[0] else 0
                    await _part(service, chats, told, lines, found, width, seconds, max_tokens, pauses, stop)
                    first = found.heard.first
                    p95 = f"p95 {share(first, 0.95):.0f} ms" if first else "nobody asked"
                    tell(f"round {number + 1} of {rounds}, {name}: {p95} so far, {found.lines} lines")
    return [_row(name, found, seen[ARMS[0]]) for name, found in seen.items()]


async def _part(
    service: ChatService,
    chats: list[str],
    told: Iterator[str],
    lines: Iterator[Line],
    found: _Seen,
    width: int,
    seconds: float,
    max_tokens: int,
    pauses: Iterator[float],
    stop: asyncio.Event,
) -> None:
    over = asyncio.Event()
    answer = BatchLines(service, longest=LONGEST).answer

    async def work() -> None:
        with acting_as(OWNER):
            for line in lines:
                outcome = await answer(line)
                assert outcome.ok, "a line of the benchmark was refused"
                found.lines += 1
                found.tokens += outcome.tokens

    async def person(number: int, chat: str) -> None:
        await asyncio.sleep(min(next(pauses), seconds / 2) * number / len(chats))
        while not over.is_set():
            await found.heard.turn(service, chat, next(told), max_tokens=max_tokens)
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), next(pauses))

    working = [asyncio.create_task(work()) for _ in range(width)]
    talking = [asyncio.create_task(person(number, chat)) for number, chat in enumerate(chats)]
    try:
        await _first_of(stop, seconds, *working, *talking)
        over.set()
        await asyncio.wait(talking, timeout=PATIENCE)
        found.unanswered += found.heard.given_up()
    finally:
        for task in (*working, *talking):
            task.cancel()
        await asyncio.gather(*working, *talking, return_exceptions=True)
        for chat in chats:
            if (run := service.runs.of_conversation(chat)) is not None:
                await run.stop()


async def _first_of(stop: asyncio.Event, seconds: float, *tasks: asyncio.Task[None]) -> None:
    """The time of a part, or until nobody wants to go on, or one of the tasks fails."""
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopped, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in done - {stopped}:
        task.result()


def _lines(max_tokens: int) -> Iterator[Line]:
    for number in itertools.count(1):
        text = QUESTION.format(subject=SUBJECTS[number % len(SUBJECTS)], number=number)
        messages = [{"role": "system", "content": f"{number}: you teach."}, {"role": "user", "content": text}]
        asked = {"messages": messages, "max_tokens": max_tokens, "temperature": 0}
        yield Line(number, json.dumps(asked).encode())


def _row(name: str, found: _Seen, alone: _Seen) -> dict[str, Any]:
    return {
        "arm": name,
        **found.heard.row(alone.heard),
        "answers": len(found.heard.first),
        "unanswered": found.unanswered,
        "batch_lines": found.lines,
        "batch_tokens": found.tokens,
    }
