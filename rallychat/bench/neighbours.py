"""`rallychat bench neighbours`: what people notice while other conversations are compacted.

Two arms in turn: people chat alone; people chat while as many other conversations, long past their high mark, are
opened, warmed and compacted whenever nobody is being answered. The people and what they say are the same.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.bench.talk import questions
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.errors import EngineInterrupted
from rallychat.messages import Failed, Message, TextDelta
from rallychat.settings import Settings

ANSWER = 64
THINK = 1.0
"""Seconds each person thinks: time for background work, which is in the way if it does not go."""
HISTORY = 60
"""Exchanges of each conversation that is compacted."""


@dataclass(slots=True)
class _Seen:
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    background: int = 0
    memories: int = 0


async def run_neighbours(
    settings: Settings, *, people: int = 4, turns: int = 5, rounds: int = 4
) -> list[dict[str, Any]]:
    """One row per arm.

    Columns: `p95_first_ms`, `p95_gap_ms` (between two arrivals of text), `of_alone` (both against the first arm),
    `background_tokens` evaluated and `memories` made meanwhile.
    """
    seen = {"alone": _Seen(), "beside compaction": _Seen()}
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        folder = Path(made)
        (folder / "models").symlink_to(settings.models_dir.resolve())
        own = settings.model_copy(update={"data_dir": folder, "titles": False})
        async with ChatService.open(own) as service:
            await service.load(service.resolve(None).id)
            texts = questions(None)
            for number in range(rounds):
                said = [list(islice(texts, turns)) for _ in range(people)]
                arms = list(seen.items())
                for name, found in arms if number % 2 else reversed(arms):
                    others = people if name != "alone" else 0
                    await _round(service, said, found, others=others)
    alone = seen["alone"]
    return [_row(name, found, alone) for name, found in seen.items()]


async def _round(service: ChatService, said: Sequence[Sequence[str]], found: _Seen, *, others: int) -> None:
    engine = await service.pool.open(service.resolve(None))
    chats = [(await service.store.create()).id for _ in said]
    long = [await _long(service, number) for number in range(others)]
    before = engine.background_tokens
    for chat in long:
        await service.open_conversation(chat)
    await asyncio.gather(
        *(_person(service, chat, texts, found) for chat, texts in zip(chats, said, strict=True))
    )
    found.background += engine.background_tokens - before
    for chat in long:
        found.memories += len(await service.contexts.memories(chat))
        service.idle.leave(chat)
    for chat in chats:
        service.idle.leave(chat)


async def _long(service: ChatService, number: int) -> str:
    """A conversation of many turns that was not yet compacted."""
    chat = (await service.store.create()).id
    texts = islice(questions(None), number * HISTORY, (number + 1) * HISTORY)
    said = [
        message
        for text in texts
        for message in (Message.of("user", text), Message.of("assistant", f"That depends. {text}"))
    ]
    await service.store.items.append(chat, said[-30:])
    return chat


async def _person(service: ChatService, chat: str, texts: Sequence[str], found: _Seen) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER)
    for text in texts:
        await asyncio.sleep(THINK)
        at = time.monotonic()
        arrived = 0
        run = await service.turn(chat, text, sampling=sampling)
        async with aclosing(run.attach(apart=True)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise EngineInterrupted(event.message, hint=event.hint)
                if isinstance(event, TextDelta):
                    now = time.monotonic()
                    (found.gaps if arrived else found.first).append((now - at) * 1000)
                    at, arrived = now, arrived + 1


def _row(name: str, found: _Seen, alone: _Seen) -> dict[str, Any]:
    first, gap = _p95(found.first), _p95(found.gaps)
    return {
        "arm": name,
        "median_first_ms": round(statistics.median(found.first)),
        "p95_first_ms": round(first),
        "first_of_alone": round(first / _p95(alone.first), 3),
        "p95_gap_ms": round(gap, 1),
        "gap_of_alone": round(gap / _p95(alone.gaps), 3),
        "background_tokens": found.background,
        "memories": found.memories,
    }


def _p95(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
