"""What reading and saying are seen to cost, where an engine tells of several steps at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, Done, EngineEvent, Prefill, Tokens, WorkerSpec
from rallychat.pool import Engine
from rallychat.settings import Settings

PROMPT = list(range(300))
LONG = [Prefill(300, 0, 0, 0.0), Prefill(300, 0, 128, 640.0), Prefill(300, 0, 300, 1500.0)]
SHORT = [Prefill(40, 0, 0, 0.0), Prefill(40, 0, 40, 200.0)]
CLOCKLESS = [Prefill(40, 0, 0), Prefill(40, 0, 40)]


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

    engine = Engine(WorkerSpec("echo", "echo", slots=1), Settings(data_dir=tmp_path))
    try:
        await engine.ready()
        monkeypatch.setattr(EngineClient, "generate", generate)
        prompt = PROMPT[: told[-1].total]
        async with engine.slot(prompt) as slot:
            request = CompletionRequest(prompt=prompt, max_tokens=3)
            events = [event async for event in engine.generate(request, slot)]
        costs = engine.queue.costs
        assert len(events) == len(told) + 3
        assert costs.reading == pytest.approx(reading)
        assert costs.of_prompt == pytest.approx(reading / 0.25)
    finally:
        await engine.stop()
