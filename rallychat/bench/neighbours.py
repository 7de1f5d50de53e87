"""`rallychat bench neighbours`: what people notice while other conversations are compacted.

Two arms in turn: people chat alone; people chat while as many other conversations, long past their high mark, are
opened, warmed and compacted whenever nobody is being answered. The people and what they say are the same.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.bench.heard import Heard
from rallychat.bench.talk import questions
from rallychat.bench.turns import share
from rallychat.bench.ways import warmed_up
from rallychat.chat import ChatService
from rallychat.messages import Message
from rallychat.settings import Settings

ANSWER = 64
THINK = 3.0
"""Seconds each person thinks: time for background work, which is in the way if it does not go."""
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
    `background_tokens` evaluated and `memories` made meanwhile.
    """
    seen = {"alone": _Seen(), "beside compaction": _Seen()}
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        async with ChatService.open(apart(settings, Path(made))) as service:
            await service.pool.open(service.resolve(None))
            await warmed_up(service)
            texts = questions(None)
            for number in range(rounds):
                said = [list(islice(texts, turns)) for _ in range(people)]
                arms = list(seen.items())
                for name, found in arms if number % 2 else reversed(arms):
                    others = people if name != "alone" else 0
                    await _round(service, said, found, others=others)
                    first = share(found.heard.first, 0.95)
                    tell(
                        f"round {number + 1} of {rounds}, {name}: p95 of the first token {first:.0f} ms so far"
                    )
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
        *(_person(service, chat, texts, found.heard) for chat, texts in zip(chats, said, strict=True))
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


async def _person(service: ChatService, chat: str, texts: Sequence[str], heard: Heard) -> None:
    for text in texts:
        await asyncio.sleep(THINK)
        await heard.turn(service, chat, text, max_tokens=ANSWER)


def _row(name: str, found: _Seen, alone: _Seen) -> dict[str, Any]:
    return {
        "arm": name,
        **found.heard.row(alone.heard),
        "background_tokens": found.background,
        "memories": found.memories,
    }
