"""What reading and saying are seen to cost, where an engine tells of several steps at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, Done, EngineEvent, Prefill, Tokens, WorkerSpec
from rallychat.pool import Engine
from rallychat.pool.fairness import Costs
from rallychat.settings import Settings

PROMPT = list(range(300))
LONG = [Prefill(300, 0, 0, 0.0), Prefill(300, 0, 128, 640.0), Prefill(300, 0, 300, 1500.0)]
SHORT = [Prefill(40, 0, 0, 0.0), Prefill(40, 0, 40, 200.0)]
CLOCKLESS = [Prefill(40, 0, 40)]


@asynccontextmanager
async def answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate: Callable[..., AsyncGenerator[EngineEvent]]
) -> AsyncIterator[Engine]:
    """An engine of four slots that answers so."""
    engine = Engine(WorkerSpec("echo", "echo", slots=4), Settings(data_dir=tmp_path))
    try:
        await engine.ready()
        monkeypatch.setattr(EngineClient, "generate", generate)
        yield engine
    finally:
        await engine.stop()


@pytest.mark.parametrize(("told", "reading"), [(LONG, 0.005), (SHORT, 0.005), (CLOCKLESS, 0.05)])
async def test_a_prompt_that_is_told_of_when_it_is_over_costs_what_it_took(
    told: list[Prefill], reading: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp tells of a short one together with its first token: it was taken to cost nothing."""
    now = 100.0
    monkeypatch.setattr("rallychat.pool.engine.time.monotonic", lambda: now)

    async def generate(
        self: EngineClient, request: CompletionRequest, **options: Any
    ) -> AsyncGenerator[EngineEvent]:
        nonlocal now
        now += 2.0  # in which it is read
        for event in told:
            yield event
        yield Tokens("a", (1,))
        now += 0.5
        yield Tokens("bc", (2, 3))
        yield Done("length", told[-1].total, 3, 0)

    async with answering(tmp_path, monkeypatch, generate) as engine:
        prompt = PROMPT[: told[-1].total]
        async with engine.slot(prompt) as slot:
            request = CompletionRequest(prompt=prompt, max_tokens=3)
            events = [event async for event in engine.generate(request, slot)]
        costs = engine.queue.costs
        assert len(events) == len(told) + 3
        assert costs.reading == pytest.approx(reading)
        assert costs.of_prompt == pytest.approx(reading / 0.25)


def test_a_long_stretch_says_more_than_a_short_one_and_a_few_tokens_nothing() -> None:
    costs = Costs()
    costs.read(1000, 5.0)
    for _ in range(200):
        costs.read(4, 0.1)  # a word of a growing answer: most of that is the price of any step
    assert costs.reading == pytest.approx(0.005)
    costs.read(20, 0.3)
    assert 0.005 < costs.reading < 0.0055


def test_the_first_prompt_and_a_process_that_slept_are_soon_forgotten() -> None:
    costs = Costs()
    costs.read(30, 2.0)  # a GPU that was just begun with
    for _ in range(40):
        costs.read(100, 0.05)
    assert costs.reading < 0.0007
    costs.read(100, 3600.0)
    assert costs.reading < 0.001


async def test_what_many_answers_wait_for_a_token_is_shared_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that writes four answers at once gives each a token in 100 ms: that is 25 ms of its time."""
    now = 100.0
    monkeypatch.setattr("rallychat.pool.engine.time.monotonic", lambda: now)

    async def generate(
        self: EngineClient, request: CompletionRequest, **options: Any
    ) -> AsyncGenerator[EngineEvent]:
        nonlocal now
        yield Prefill(40, 0, 40, 200.0)
        for token in range(3):
            yield Tokens("a", (token,))
            now += 0.1
        yield Done("length", 40, 3, 0)

    async with answering(tmp_path, monkeypatch, generate) as engine:
        async with AsyncExitStack() as stack:
            slots = [await stack.enter_async_context(engine.slot(PROMPT[:40])) for _ in range(4)]
            for slot in slots:
                engine.queue.begun(slot)
            request = CompletionRequest(prompt=PROMPT[:40], max_tokens=3)
            assert [event async for event in engine.generate(request, slots[0])]
        assert engine.queue.costs.of_prompt == pytest.approx(0.005 / 0.025)
