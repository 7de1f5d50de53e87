"""Fair turns through the whole service, with the echo engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from rallychat.api.batch_lines import BatchLines
from rallychat.batches import Line
from rallychat.bench.beside import run_beside
from rallychat.bench.fair import ARMS, run_fair
from rallychat.catalog import ANY, Sampling
from rallychat.chat import ChatService
from rallychat.engines.protocol import CompletionRequest
from rallychat.identity import acting_as
from rallychat.messages import Finished, Loading, Message, Queued, TextDelta
from rallychat.pool import Engine, Priority, Slot
from rallychat.pool.engine import SIP
from tests.api_world import settings
from tests.responses_world import write_models


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a look at the queue, which tells nobody
        await asyncio.sleep(0.001)


async def answer(
    service: ChatService,
    user: str,
    text: str,
    *,
    model: str | None = "slow",
    sampling: Sampling = ANY,
    priority: Priority = Priority.CHAT,
) -> tuple[str, bool, bool]:
    """What is said, whether it waited before it began, and whether it was told to wait amid its words."""
    said: list[str] = []
    waited = paused = False
    with acting_as(user):
        asked = [Message.of("user", text)]
        async for event in service.complete(asked, model=model, sampling=sampling, priority=priority):
            match event:
                case TextDelta(text=more):
                    said.append(more)
                case Queued():
                    waited, paused = waited or not said, paused or bool(said)
                case Finished(reason=reason):
                    assert reason in ("stop", "length")
                case _:
                    pass
    return "".join(said), waited, paused


async def test_one_answer_of_a_flood_makes_way_and_is_asked_again_with_what_it_had_said(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    whole = " ".join(str(n) for n in range(1, 31))
    async with ChatService.open(settings(tmp_path, slots=2)) as service:
        await service.load("slow")
        engine = await service.pool.open(service.resolve("slow"))
        flood = [asyncio.create_task(answer(service, "a", "!count 30")) for _ in range(4)]
        await until(lambda: engine.queue.busy == 2 and all(slot.said > 3 for slot in engine.queue.slots))
        other = await answer(service, "b", "hello")
        done = await asyncio.gather(*flood)
    assert other[0] == "hello"
    for said, _, was_paused in done:  # the echo engine answers a prompt from its beginning, whatever ends it
        before = said.removesuffix(whole)
        assert whole.startswith(before)
        assert bool(before) is was_paused
    assert engine.queue.pauses == sum(paused for _, _, paused in done) == 1
    assert engine.queue.idle


async def test_an_answer_that_has_made_way_is_not_refused_by_a_line_that_is_full_by_now(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, slots=1, max_queue=1)) as service:
        await service.load("slow")
        engine = await service.pool.open(service.resolve("slow"))
        first = asyncio.create_task(answer(service, "a", "!count 30", priority=Priority.PATIENT))
        await until(lambda: engine.queue.slots[0].said > 3)
        second = asyncio.create_task(answer(service, "b", "hello b", priority=Priority.PATIENT))
        await until(lambda: engine.queue.waiting == 1)
        assert (await answer(service, "c", "hello c"))[0] == "hello c"
        said = [text for text, _, _ in await asyncio.gather(first, second)]
    assert said[0].endswith(" 28 29 30")
    assert said[1] == "hello b"


@pytest.mark.real
async def test_an_answer_that_makes_way_goes_on_without_a_word_lost_or_said_twice(
    tmp_path: Path, smollm2_gguf: Path
) -> None:
    (tmp_path / "models").symlink_to(smollm2_gguf.parent)
    own = settings(tmp_path, model=str(smollm2_gguf), slots=2, window=1024)
    greedy = Sampling(temperature=0.0, max_tokens=120)
    text = "Tell a story of a fox, as long as you can."
    async with ChatService.open(own) as service:
        await service.load(own.model)
        engine = await service.pool.open(service.resolve(None))
        alone = await answer(service, "a", text, model=None, sampling=greedy)
        flood = [
            asyncio.create_task(answer(service, "a", text, model=None, sampling=greedy)) for _ in range(2)
        ]
        await until(lambda: engine.queue.busy == 2 and all(slot.said > 20 for slot in engine.queue.slots))
        await answer(service, "b", "Hi", model=None, sampling=Sampling(temperature=0.0, max_tokens=4))
        done = await asyncio.gather(*flood)
    assert [said[:200] for said, _, _ in done] == [alone[0][:200]] * 2
    assert sum(paused for _, _, paused in done) == 1


async def test_a_hundred_users_at_once_are_all_answered_and_none_waits_without_being_told(
    tmp_path: Path,
) -> None:
    async with ChatService.open(settings(tmp_path, slots=4)) as service:
        await service.load("echo")
        engine = await service.pool.open(service.resolve("echo"))
        async with AsyncExitStack() as busy:
            for n in range(4):
                await busy.enter_async_context(engine.slot([n]))
            asked = [
                asyncio.create_task(answer(service, f"u{n}", f"hello {n}", model="echo")) for n in range(100)
            ]
            await until(lambda: engine.queue.waiting == 100)
        done = await asyncio.gather(*asked)
    assert [said for said, _, _ in done] == [f"hello {n}" for n in range(100)]
    assert all(waited for _, waited, _ in done)


async def test_one_who_stops_while_waiting_leaves_the_line_at_once(tmp_path: Path) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, slots=1)) as service:
        await service.load("slow")
        engine = await service.pool.open(service.resolve("slow"))
        holder = asyncio.create_task(answer(service, "a", "!count 500"))
        waiting = asyncio.create_task(answer(service, "b", "never"))
        await until(lambda: engine.queue.waiting > 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (engine.queue.waiting, engine.queue.busy) == (0, 1)
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)
        assert engine.queue.idle


async def test_who_waits_while_another_s_answer_kills_the_engine_is_answered_by_the_next(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, slots=1)) as service:
        await service.load("slow")
        engine = await service.pool.open(service.resolve("slow"))
        async with engine.slot([1]):
            asked = []
            for user, text in zip("abcd", ("!crash 9", "hello b", "hello c", "hello d"), strict=True):
                asked.append(asyncio.create_task(answer(service, user, text)))
                await until(lambda: engine.queue.waiting == len(asked))
        _, *done = await asyncio.gather(*asked)
    assert [said for said, _, _ in done] == ["hello b", "hello c", "hello d"]
    assert engine.restarts == 1


async def test_a_model_that_is_loaded_for_somebody_is_not_unloaded_for_another(tmp_path: Path) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, max_loaded=1)) as service:
        asked = [answer(service, name, f"hello {name}", model=name) for name in ("slow", "echo") * 3]
        said = [text for text, _, _ in await asyncio.gather(*asked)]
    assert said == ["hello slow", "hello echo"] * 3


async def test_who_waits_until_another_s_model_is_out_of_use_is_told(tmp_path: Path) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, max_loaded=1)) as service:
        using = asyncio.create_task(answer(service, "a", "!count 100"))
        await until(lambda: any(engine.queue.busy for engine in service.pool.engines()))
        events = service.complete([Message.of("user", "hello b")], model="echo")
        async with aclosing(events):
            assert await anext(events) == Loading("echo", "load")
            assert not using.done()
        await using


@pytest.mark.parametrize("somebody_was_here", [True, False])
async def test_a_batch_s_prompt_is_read_in_sips_only_where_a_person_may_come_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, somebody_was_here: bool
) -> None:
    monkeypatch.setattr("rallychat.pool.engine.STEP", 0.0)  # no engine is so fast that the sips may grow
    steps: list[int] = []
    generate = Engine.generate

    def watched(self: Engine, request: CompletionRequest, slot: Slot, **given: Any) -> Any:
        steps.append(len(request.prompt) - len(slot.ids))
        return generate(self, request, slot, **given)

    async with ChatService.open(settings(tmp_path, slots=2)) as service:
        await service.load("echo")
        if somebody_was_here:
            await answer(service, "a", "hello", model="echo")
        monkeypatch.setattr(Engine, "generate", watched)
        events = service.complete([Message.of("user", "9" * 200)], model="echo", priority=Priority.BATCH)
        *said, end = [event async for event in events]
    assert "".join(event.text for event in said if isinstance(event, TextDelta)) == "9" * 200
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 0  # what was read ahead was not there before
    assert max(steps) > 200 if not somebody_was_here else max(steps) <= SIP
    assert sum(steps) == end.usage.prompt_tokens


async def test_the_measurement_of_a_flood_smaller_than_the_slots_ends_in_time_and_tells_how_far_it_is(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    (tmp_path / "models").mkdir(exist_ok=True)
    told: list[str] = []
    own = settings(tmp_path, model="slow", slots=3)
    rows = await run_fair(own, people=2, flood=2, rounds=1, minutes=0.06, max_tokens=8, tell=told.append)
    assert [row["arm"] for row in rows] == list(ARMS)
    assert all(row["first"] >= 2 and row["p95_first_ms"] > 0 for row in rows)
    assert [row["jain"] is None for row in rows] == [True, False, False]
    assert all(row["tokens"] > 0 for row in rows[1:])
    assert len(told) == 6


async def test_a_batch_gets_on_beside_somebody_who_never_stops_where_that_slows_nobody(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    async with ChatService.open(settings(tmp_path, slots=4)) as service:
        engine = await service.pool.open(service.resolve("slow"))
        talk = asyncio.create_task(answer(service, "a", "!count 100000"))
        await until(lambda: engine.queue.busy == 1)
        lines = BatchLines(service, longest=2**20)
        with acting_as("b"):
            asked = {"model": "slow", "messages": [{"role": "user", "content": "hello"}]}
            done = await asyncio.gather(
                *(lines.answer(Line(n, json.dumps(asked).encode())) for n in range(6))
            )
        assert all(outcome.ok for outcome in done)
        assert not talk.done()
        assert engine.queue.pauses == 0
        talk.cancel()
        await asyncio.gather(talk, return_exceptions=True)


async def test_the_measurement_of_a_batch_beside_people_ends_in_time_and_its_batch_gets_on(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    (tmp_path / "models").mkdir(exist_ok=True)
    told: list[str] = []
    own = settings(tmp_path, model="slow", slots=4)
    rows = await run_beside(own, people=2, rounds=1, minutes=0.05, max_tokens=8, tell=told.append)
    assert [row["arm"] for row in rows] == ["alone", "beside a batch"]
    assert all(row["answers"] >= 2 and row["p95_first_ms"] > 0 for row in rows)
    assert (rows[0]["batch_lines"], rows[1]["batch_lines"] > 0) == (0, True)
    assert len(told) == 3
