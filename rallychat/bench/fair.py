"""`rallychat bench fair`: what seven people notice of an eighth who floods the service.

Each round asks the same of the same engine in five parts of equal length: the seven without the eighth; beside the
flood, with fair turns and in order of arrival; and, with both, when the seven always have a question, too. Prompts are
new each time, so nobody gains from a cache.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.bench.serve import QUESTION, SUBJECTS
from rallychat.bench.talk import thinks
from rallychat.bench.turns import share, wish_to_stop
from rallychat.bench.ways import begun
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.errors import EngineInterrupted
from rallychat.identity import acting_as
from rallychat.messages import Failed, Message, ReasoningDelta, TextDelta
from rallychat.pool.slots import SlotQueue
from rallychat.settings import Settings

THINK = 2.0
"""Seconds each of the seven thinks between an answer and the next question, about."""
PATIENCE = 5.0
"""Seconds that who has asked when a part ends still waits for a first token, at most."""
REFUSED = 0.5
"""Seconds until who was refused asks again."""
LOOK = 0.05
FLOOD = "flood"
ARMS = ("no flood", "fair turns", "in order of arrival")
PARTS = 5


@dataclass(slots=True)
class _Seen:
    first: list[float] = field(default_factory=list)
    unanswered: int = 0
    even: list[float] = field(default_factory=list)
    refused: int = 0
    pauses: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Scene:
    service: ChatService
    queue: SlotQueue
    stop: asyncio.Event
    people: Sequence[str]
    flood: int
    max_tokens: int
    seconds: float
    numbers: Iterator[int] = field(default_factory=count)
    thinks: Iterator[float] = field(default_factory=partial(thinks, THINK))


async def run_fair(
    settings: Settings,
    *,
    people: int = 7,
    flood: int = 50,
    rounds: int = 3,
    minutes: float = 6.0,
    max_tokens: int = 64,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row per arm; Ctrl-C ends it early with what there is.

    Columns: `median_first_ms` and `p95_first_ms` of the people, `of_no_flood` (p95 against the first arm), `first` (how
    many first tokens), `unanswered` (at the end of a part; they count with what they had waited), `jain` (index of the
    tokens said to all users while each always has a question; median over the rounds) of so many `tokens`, `refused`
    requests of people, `pauses` of the flood's answers.

    Args:
        minutes: how long all parts take together.
    """
    seen = {name: _Seen() for name in ARMS}
    seconds = 60 * minutes / (rounds * PARTS)
    names = [f"user {number}" for number in range(people)]
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made, wish_to_stop() as stop:
        own = apart(settings, Path(made))
        # what this machine's budget is costs minutes to find out, and nothing here is long enough to ask
        own = own.model_copy(update={"max_queue": max(own.max_queue, flood + people), "latency_factor": 0.0})
        tell(f"{rounds} rounds of {PARTS} parts, {seconds:.1f} s each; loading")
        async with begun(own) as service:
            engine = await service.pool.open(service.resolve(None))
            scene = _Scene(service, engine.queue, stop, names, flood, max_tokens, seconds)
            for number in range(rounds):
                for name in ARMS if number % 2 == 0 else reversed(ARMS):
                    if not stop.is_set():
                        await _parts(scene, name, seen[name], f"round {number + 1} of {rounds}, {name}", tell)
    return [_row(name, found, seen[ARMS[0]]) for name, found in seen.items()]


async def _parts(scene: _Scene, name: str, found: _Seen, where: str, tell: Callable[[str], None]) -> None:
    scene.queue.by_user = name != ARMS[2]
    await _chats(scene, found, flood=scene.flood if name != ARMS[0] else 0)
    if found.first:
        late = f", {found.unanswered} not answered" if found.unanswered else ""
        tell(f"{where}: p95 {share(found.first, 0.95):.0f} ms of {len(found.first)} so far{late}")
    if name != ARMS[0] and not scene.stop.is_set():
        await _backlogged(scene, found)
        even = f"Jain's index {found.even[-1]:.3f}" if found.even else "nobody was answered"
        tell(f"{where}: all with questions, {even}")


async def _chats(scene: _Scene, found: _Seen, *, flood: int) -> None:
    """People who think between their questions, beside the flood, whose answers are four times as long."""
    before = scene.queue.pauses
    waiting: dict[str, float] = {}
    over = asyncio.Event()

    def first(user: str) -> None:
        found.first.append((time.monotonic() - waiting.pop(user)) * 1000)

    async def chat(number: int, user: str) -> None:
        await asyncio.sleep(min(THINK, scene.seconds / 2) * number / len(scene.people))
        while not over.is_set():
            waiting[user] = time.monotonic()
            try:
                await _ask(scene, user, scene.max_tokens, first)
            except EngineInterrupted:
                found.refused += 1
            waiting.pop(user, None)
            await asyncio.sleep(next(scene.thinks))

    others = [asyncio.create_task(_without_end(scene, FLOOD, 4 * scene.max_tokens)) for _ in range(flood)]
    chats: list[asyncio.Task[None]] = []
    try:
        await _passed(scene, lambda: scene.queue.busy >= min(flood, len(scene.queue.slots)))
        chats = [asyncio.create_task(chat(number, user)) for number, user in enumerate(scene.people)]
        await _passed(scene, lambda: False)
        over.set()
        await _passed(scene, lambda: not waiting, seconds=PATIENCE)
        found.unanswered += len(waiting)
        for user in list(waiting):
            first(user)
    finally:
        await _ended([*others, *chats])
    found.pauses += scene.queue.pauses - before


async def _backlogged(scene: _Scene, found: _Seen) -> None:
    """Everybody always has a question, and one many: Jain's index of the tokens said to each."""
    said = Counter(dict.fromkeys([FLOOD, *scene.people], 0))

    def heard(user: str, tokens: int) -> None:
        said[user] += tokens

    asking = [*scene.people, *[FLOOD] * scene.flood]
    tasks = [asyncio.create_task(_without_end(scene, user, scene.max_tokens)) for user in asking]
    try:
        # from the moment at which all slots are taken: who came first is the start's chance
        await _passed(scene, lambda: scene.queue.busy >= min(len(asking), len(scene.queue.slots)))
        scene.queue.on_said = heard
        await _passed(scene, lambda: False)
        await _passed(scene, lambda: said.total() > 0, seconds=PATIENCE)
    finally:
        scene.queue.on_said = None
        await _ended(tasks)
    if said.total():  # else nothing was said that could be shared
        found.even.append(jain(list(said.values())))
    found.tokens += said.total()


async def _without_end(scene: _Scene, user: str, max_tokens: int) -> None:
    while True:
        try:
            await _ask(scene, user, max_tokens)
        except EngineInterrupted:
            await asyncio.sleep(REFUSED)


async def _ask(
    scene: _Scene, user: str, max_tokens: int, first: Callable[[str], None] = lambda _: None
) -> None:
    """One question, and its answer to the end; `first` hears of the first token."""
    number = next(scene.numbers)
    text = QUESTION.format(subject=SUBJECTS[number % len(SUBJECTS)], number=number)
    messages = [Message.of("system", f"{number}: you are a patient teacher."), Message.of("user", text)]
    silent = True
    with acting_as(user):
        sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
        async with aclosing(scene.service.complete(messages, sampling=sampling)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise EngineInterrupted(event.message, hint=event.hint)
                if silent and isinstance(event, TextDelta | ReasoningDelta):
                    silent = False
                    first(user)
    if silent:  # of an answer without a token its end is what its person waited for
        first(user)


async def _passed(scene: _Scene, early: Callable[[], bool], *, seconds: float | None = None) -> None:
    """The time of a part, or until something is so, or nobody wants to go on."""
    end = time.monotonic() + (scene.seconds if seconds is None else seconds)
    while not early() and not scene.stop.is_set() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(LOOK)


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _row(name: str, found: _Seen, alone: _Seen) -> dict[str, Any]:
    p95 = share(found.first, 0.95) if found.first else None
    return {
        "arm": name,
        "median_first_ms": round(statistics.median(found.first)) if found.first else None,
        "p95_first_ms": round(p95) if p95 is not None else None,
        "of_no_flood": round(p95 / share(alone.first, 0.95), 2) if p95 and alone.first else None,
        "first": len(found.first),
        "unanswered": found.unanswered,
        "jain": round(statistics.median(found.even), 3) if found.even else None,
        "tokens": found.tokens or None,
        "refused": found.refused,
        "pauses": found.pauses,
    }
