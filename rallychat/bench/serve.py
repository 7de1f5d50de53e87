"""`rallychat bench serve`: the service against the raw engine, and against the 2023 way where torch is installed.

All arms answer the same prompts with the same weights, greedily, in turn within one run, so a noisy machine is
noisy for all of them. Every prompt is new to both, so neither gains from a cache.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.bench import arms
from rallychat.bench.arms import Arm, Prompt, Round
from rallychat.bench.folders import apart
from rallychat.chat import ChatService
from rallychat.engines.protocol import WorkerSpec
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.sources import weights_path

SUBJECTS = (
    "tides",
    "bread",
    "glaciers",
    "chess",
    "bees",
    "volcanoes",
    "paper",
    "jazz",
    "maps",
    "salt",
    "owls",
)
QUESTION = (
    "Explain {subject} number {number} to a curious beginner, in as much detail as you can, step by step."
)
THREADS_ROUNDS = 1
"""The first rounds of each user count, which the 2023 way has, too: it is slow enough to be clear."""


async def run_serve(
    settings: Settings, *, users: Sequence[int] = (1, 4, 8, 16), rounds: int = 5, max_tokens: int = 64
) -> list[dict[str, Any]]:
    """One row per user count and arm.

    Columns: `users`, `arm`, `tokens_per_s` (median over the rounds, all users together), `of_raw` (median of the
    ratios round by round), `first_ms` (median over all answers), `added_first_ms` (median of the differences to
    the raw engine, user by user), `tokens`.
    """
    slots, window = max(users), 1024
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        own = apart(settings, folder)
        model, prompts = await _prompts(own, slots + sum(users) * rounds)
        path = str(weights_path(model, own))
        spec = WorkerSpec("llamacpp", model.id, path, slots=slots, window=window, threads=own.threads)
        flags = ["--slots", str(slots), "--window", str(window)]
        ours = await stack.enter_async_context(arms.service(own, model.id, flags))
        raw = await stack.enter_async_context(arms.child("raw engine", "rallychat.bench.raw", spec))
        old = None
        if arms.has_torch():
            old = await stack.enter_async_context(arms.child("2023 threads", "rallychat.bench.threads", spec))
        for arm in (
            raw,
            ours,
        ):  # then every slot has held a prompt, and shares the template's first tokens with any
            await arm.answer(prompts[:slots], 4)
        if old is not None:
            await old.answer(prompts[:1], 4)
        fresh = iter(prompts[slots:])
        for count in users:
            rows += await _compare(count, [raw, ours], old, fresh, rounds=rounds, max_tokens=max_tokens)
    return rows


async def _prompts(settings: Settings, count: int) -> tuple[Any, list[Prompt]]:
    """The model, and prompts for it."""
    async with ChatService.open(settings) as chat:
        await chat.load(chat.settings.model)
        return chat.resolve(None), await prompts_of(chat, count)


async def prompts_of(chat: ChatService, count: int) -> list[Prompt]:
    """Prompts as the service will render them, so that every arm evaluates the same ids. No two begin alike."""
    prompts: list[Prompt] = []
    for number in range(count):
        text = QUESTION.format(subject=SUBJECTS[number % len(SUBJECTS)], number=number)
        system = f"{number}: you are a patient teacher."
        messages = [Message.of("system", system), Message.of("user", text)]
        ids = await chat.tokens(await chat.render(messages))
        prompts.append(Prompt([{"role": m.role, "content": m.text} for m in messages], ids))
    return prompts


async def _compare(
    count: int,
    pair: Sequence[Arm],
    old: Arm | None,
    fresh: Iterator[Prompt],
    *,
    rounds: int,
    max_tokens: int,
) -> list[dict[str, Any]]:
    done: dict[str, list[Round]] = {arm.name: [] for arm in pair}
    for number in range(rounds):
        asked = list(islice(fresh, count))
        for arm in pair if number % 2 else reversed(pair):
            done[arm.name].append(await arm.answer(asked, max_tokens))
        if old is not None and number < THREADS_ROUNDS:
            done.setdefault(old.name, []).append(await old.answer(asked, max_tokens))
    raw = done[pair[0].name]
    return [_row(count, name, found, raw) for name, found in done.items()]


def _row(count: int, name: str, found: Sequence[Round], raw: Sequence[Round]) -> dict[str, Any]:
    ratios = [(r.tokens / r.seconds) / (b.tokens / b.seconds) for r, b in zip(found, raw, strict=False)]
    added = [x - y for r, b in zip(found, raw, strict=False) for x, y in zip(r.first, b.first, strict=True)]
    return {
        "users": count,
        "arm": name,
        "tokens_per_s": round(statistics.median(r.tokens / r.seconds for r in found), 1),
        "of_raw": round(statistics.median(ratios), 3),
        "first_ms": round(statistics.median(f for r in found for f in r.first) * 1000, 1),
        "added_first_ms": round(statistics.median(added) * 1000, 1),
        "tokens": sum(r.tokens for r in found),
    }
