"""`rallychat bench neighbours`: what people notice while other conversations are compacted.

Two arms in turn: people chat alone; people chat while as many other conversations, long past their high mark, are
opened, warmed and compacted whenever nobody is being answered. The people and what they say are the same. They think so
long that compactions end within a round: what follows one's end is part of what is measured.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.bench.heard import Heard
from rallychat.bench.talk import questions
from rallychat.bench.turns import share
from rallychat.bench.ways import begun
from rallychat.chat import ChatService
from rallychat.errors import EngineUnavailable
from rallychat.messages import Message
from rallychat.settings import Settings

ANSWER = 64
THINK = (3.0, 30.0)
"""Seconds each person thinks, at least and at most: time for background work, which is in the way if it does not go."""
ENOUGH = 1.5
"""So many times what one compaction takes here is thought in a round, in all."""
HISTORY = 60
"""Exchanges of each conversation that is compacted."""


@dataclass(slots=True)
class _Seen:
    heard: Heard = field(default_factory=Heard)
    background: int = 0
    memories: int = 0


async def run_neighbours(
    settings: Settings,
    *,
    people: int = 4,
    turns: int = 5,
    rounds: int = 4,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row per arm.

    Columns: `p95_first_ms`, `p95_gap_ms` (between two arrivals of text), `of_alone` (both against the first arm),
    `think_s`, `background_tokens` evaluated and `memories` made meanwhile.
    """
    seen = {"alone": _Seen(), "beside compaction": _Seen()}
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        async with begun(apart(settings, Path(made))) as service:
            needed = await _compaction(service, people)
            think = min(max(THINK[0], ENOUGH * needed / turns), THINK[1])
            tell(f"a compaction takes {needed:.1f} s here: people think for {think:.1f} s")
            texts = questions(None)
            for number in range(rounds):
                said = [list(islice(texts, turns)) for _ in range(people)]
                arms = list(seen.items())
                for name, found in arms if number % 2 else reversed(arms):
                    others = people if name != "alone" else 0
                    ended = await _round(service, said, found, others=others, think=think)
                    p95 = f"p95 of the first token {share(found.heard.first, 0.95):.0f} ms so far"
                    beside = f", {ended} compactions ended" if others else ""
                    tell(f"round {number + 1} of {rounds}, {name}: {p95}{beside}")
    alone = seen["alone"]
    return [{**_row(name, found, alone), "think_s": round(think, 1)} for name, found in seen.items()]


async def _compaction(service: ChatService, number: int) -> float:
    """Seconds until a long conversation is compacted where nobody is answered.

    Raises:
        EngineUnavailable: it never is, so there is nothing to measure.
    """
    chat, began = await _long(service, number), time.monotonic()
    await service.open_conversation(chat)
    await service.idle.settled()
    seconds = time.monotonic() - began
    service.idle.leave(chat)
    if not await service.contexts.memories(chat):
        raise EngineUnavailable(
            f"A conversation of {HISTORY} exchanges is not compacted here.",
            hint="a smaller window (RALLYCHAT_WINDOW) has a lower mark; full and last_n compact nothing",
        )
    return seconds


async def _round(
    service: ChatService, said: Sequence[Sequence[str]], found: _Seen, *, others: int, think: float
) -> int:
    """One round of an arm; how many compactions ended in it."""
    engine = await service.pool.open(service.resolve(None))
    chats = [(await service.store.create()).id for _ in said]
    long = [await _long(service, number) for number in range(others)]
    before = engine.background_tokens
    for chat in long:
        await service.open_conversation(chat)
    await asyncio.gather(
        *(_person(service, chat, texts, found.heard, think) for chat, texts in zip(chats, said, strict=True))
    )
    found.background += engine.background_tokens - before
    made = sum([len(await service.contexts.memories(chat)) for chat in long])
    found.memories += made
    for chat in (*long, *chats):
        service.idle.leave(chat)
    return made


async def _long(service: ChatService, number: int) -> str:
    """A conversation of many turns that was not yet compacted."""
    chat = (await service.store.create()).id
    texts = islice(questions(None), number * HISTORY, (number + 1) * HISTORY)
    said = [
        message
        for text in texts
        for message in (Message.of("user", text), Message.of("assistant", f"That depends. {text}"))
    ]
    await service.store.items.append(chat, said)
    return chat


async def _person(service: ChatService, chat: str, texts: Sequence[str], heard: Heard, think: float) -> None:
    for text in texts:
        await asyncio.sleep(think)
        await heard.turn(service, chat, text, max_tokens=ANSWER)


def _row(name: str, found: _Seen, alone: _Seen) -> dict[str, Any]:
    return {
        "arm": name,
        **found.heard.row(alone.heard),
        "background_tokens": found.background,
        "memories": found.memories,
    }
