"""Where no idle time comes room is made beside answers, over the echo engine in its real worker process."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rallychat import idle
from rallychat import riding as rides
from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.compacting import Making, Scene
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, Done, EngineInfo
from rallychat.idle import Idle
from rallychat.messages import ContextReport, Finished, Segment
from rallychat.pool import Engine, Preempted, Priority, Slot
from rallychat.pool.slots import SlotQueue
from rallychat.riding import (
    BESIDE_OTHERS,
    LEAD,
    SHARE_OTHERS,
    SLICES,
    Riding,
    allowance,
    late,
    lead_of,
    near,
)
from rallychat.runs import Run
from rallychat.settings import Settings

World = Callable[..., AbstractAsyncContextManager[ChatService]]
LONG = "tell me all about the harbour and the boats with lemons "


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A service over the echo engine in which nothing ever happens in idle time."""
    monkeypatch.setattr(idle, "REST", 3600.0)

    @asynccontextmanager
    async def opened(options: str = "delay_ms = 3", **given: Any) -> AsyncIterator[ChatService]:
        scripted(tmp_path, "scripted", options, window=1024)
        settings = Settings(
            data_dir=tmp_path,
            model="scripted",
            **{"slots": 3, "strategy": "ledger", "titles": False, **given},
        )
        async with ChatService.open(settings) as service:
            yield service

    return opened


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CompletionRequest, int]]:
    """Everything the engines are asked, and in which slot."""
    seen: list[tuple[CompletionRequest, int]] = []
    generate = Engine.generate

    def watched(self: Engine, request: CompletionRequest, slot: Slot, *, session: str | None = None) -> Any:
        seen.append((request, slot.index))
        return generate(self, request, slot, session=session)

    monkeypatch.setattr(Engine, "generate", watched)
    return seen


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer ends before its ride has made room, however slow the machine is that both share."""
    under_way: set[str] = set()
    generate, ride, follow = Engine.generate, Idle._ride, Riding._follow

    def begun(self: Idle, conversation_id: str, report: ContextReport, **given: Any) -> Any:
        under_way.add(conversation_id)
        return ridden(self, conversation_id, report, **given)

    async def ridden(self: Idle, conversation_id: str, report: ContextReport, **given: Any) -> None:
        try:
            await ride(self, conversation_id, report, **given)
        finally:
            under_way.discard(conversation_id)

    async def following(self: Riding, scene: Scene, making: Making, run: Run) -> None:
        under_way.discard(scene.session)
        await follow(self, scene, making, run)

    async def held(
        self: Engine, request: CompletionRequest, slot: Slot, *, session: str | None = None
    ) -> AsyncIterator[Any]:
        async with aclosing(generate(self, request, slot, session=session)) as events:
            async for event in events:
                while isinstance(event, Done) and request.max_tokens and slot.session in under_way:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.001)
                yield event

    monkeypatch.setattr(Idle, "_ride", begun)
    monkeypatch.setattr(Riding, "_follow", following)
    monkeypatch.setattr(Engine, "generate", held)


async def say(service: ChatService, conversation_id: str, text: str) -> Finished:
    end = await (await service.turn(conversation_id, text)).wait()
    assert isinstance(end, Finished)
    return end


def evaluated(end: Finished) -> int:
    return end.usage.prompt_tokens - end.usage.cached_tokens


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - a look at the queue, which tells nobody
            await asyncio.sleep(0.001)


async def riding(service: ChatService, conversation_id: str) -> Run:
    """An answer that grows while room is made beside it."""
    engine = await service.pool.open(service.resolve(None))
    while True:
        run = await service.turn(conversation_id, LONG)
        await until(lambda run=run: run.done or any(slot.beside for slot in engine.queue.slots))  # type: ignore[misc]
        if not run.done:
            return run


@pytest.mark.usefixtures("unhurried")
async def test_who_never_pauses_never_waits_for_room_to_be_made(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        ends = [await say(service, chat, f"{number} {LONG}") for number in range(24)]
        fresh = evaluated(ends[1])
        assert max(evaluated(end) for end in ends[1:]) < fresh * 2
        memories = await service.contexts.memories(chat)
        assert len(memories) > 2
        for memory in memories:  # none of them was made while a person waited
            assert "was about to pass" in memory.why or "passed" in memory.why
        assert any("was about to pass" in memory.why for memory in memories)
        reports = [end.report for end in ends if end.report]
        assert max(report.prompt_tokens - report.high_mark for report in reports) <= 0
        assert max(report.prompt_tokens / report.high_mark for report in reports) > 1 - LEAD


async def test_who_pauses_has_room_made_in_idle_time_and_none_beside_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "REST", 0.0)
    beside: list[int] = []

    async def read(self: Riding, scene: Scene, making: Making, run: Run, ids: list[int], **_: str) -> Slot:
        beside.append(len(ids))
        raise AssertionError("room is made beside an answer")

    monkeypatch.setattr(Riding, "_read", read)
    async with world() as service:
        chat = (await service.store.create()).id
        for number in range(20):
            await say(service, chat, f"{number} {LONG}")
            await service.idle.settled()
        assert len(await service.contexts.memories(chat)) > 1
        assert beside == []


@pytest.mark.parametrize(
    ("ended", "taken"), [(False, ""), (True, ""), (False, "after the last slice"), (False, "amid the swap")]
)
async def test_a_prompt_that_lacks_an_answer_that_has_ended_or_its_slot_is_not_swapped_in(
    ended: bool, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    making, swapped = Making(nothing, nothing), list[Making]()
    run = SimpleNamespace(said="so far", whole=ended, done=ended)

    async def given(*_: Any, **__: Any) -> Any:
        return making

    async def ids(*_: Any) -> list[int]:
        return [1, 2, 3]

    async def read(*_: Any, **__: Any) -> Any:
        return slot

    async def swap(_: Scene, made: Making) -> bool:
        run.whole, slot.session = True, "another" if taken else "c"
        swapped.append(made)
        return True

    for name, double in (("_due", given), ("_ids", ids), ("_read", read)):
        monkeypatch.setattr(Riding, name, double)
    slot = SimpleNamespace(ids=[1, 2, 3], session="another" if taken == "after the last slice" else "c")
    settled: list[object] = []
    queue = SimpleNamespace(
        others=lambda _: False, settle=lambda _, mine: settled.append(mine), home=lambda _: None
    )
    engine: Any = SimpleNamespace(info=SimpleNamespace(rollback=True, extends=True), queue=queue)
    conversation: Any = SimpleNamespace(id="c")
    compacting: Any = SimpleNamespace(swap=swap, lasts=lambda _: None)
    riding = Riding(nothing, compacting, lambda _: cast("Run", run))
    await riding.ride(Scene(conversation, nothing, engine, None, 0.0), report_of([100]), hurried=True)
    assert swapped == ([] if ended or taken == "after the last slice" else [making])
    assert settled == ([] if ended or taken else [slot])


@pytest.mark.usefixtures("unhurried")
async def test_the_next_prompt_is_what_was_read_beside_the_answer_in_the_slot_it_was_read_into(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        while not await service.contexts.memories(chat):
            requests.clear()
            await say(service, chat, LONG)
        before = requests[0][1]
        read = [(request.prompt, slot) for request, slot in requests if request.max_tokens == 0]
        requests.clear()
        await say(service, chat, "and then")
        # the last words of the answer before may still be read: that asks for no token
        prompt, slot = next((request.prompt, slot) for request, slot in requests if request.max_tokens)
        assert {slot for _, slot in read} == {slot} != {before}
        assert all(prompt[: len(ids)] == ids for ids, _ in read)
        # and it is what somebody who plans anew is given
        model = service.resolve(None)
        engine = await service.pool.open(model)
        conversation = await service.store.get(chat)
        tip = (await service.store.path(chat))[-2].id
        limit = service.sampling(model).max_tokens
        anew = await service.contexts.plan(conversation, tip, model=model, engine=engine, max_tokens=limit)
        assert anew.ids == prompt


def at_work_for(conversation_id: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == f"idle {conversation_id}"]


@pytest.mark.usefixtures("unhurried")
async def test_an_answer_that_is_whole_is_read_to_its_last_word(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        only_the_question = evaluated(await say(service, chat, "and then"))
        while not await service.contexts.memories(chat):
            await say(service, chat, LONG)
            await until(lambda: len(at_work_for(chat)) == 1)  # the ride has ended, its successor rests
        assert evaluated(await say(service, chat, "and then")) <= only_the_question


async def test_a_slice_is_one_step_of_the_engine(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world() as service:
        engine = await service.pool.open(service.resolve(None))
        engine._sip = 8  # what other work is read in
        ids = list(range(10, 110))
        async with engine.slot(ids, priority=Priority.COMPACTION, beside=True) as slot:
            await engine.warm(ids, slot, most=40)
            await engine.warm(ids, slot, most=40)
        assert [len(request.prompt) for request, _ in requests] == [40, 80]
        assert engine._sip == 8


async def test_nothing_is_read_ahead_by_an_engine_that_reads_every_prompt_as_a_whole(
    world: World, requests: list[tuple[CompletionRequest, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = EngineClient.info

    async def told(client: EngineClient) -> EngineInfo:
        return (await ask(client)).model_copy(update={"extends": False})

    monkeypatch.setattr(EngineClient, "info", told)
    async with world() as service:
        chat = (await service.store.create()).id
        while not await service.contexts.memories(chat):
            await say(service, chat, LONG)
        engine = await service.pool.open(service.resolve(None))
        ids = list(range(10, 110))
        async with engine.slot(ids, priority=Priority.WARMING) as slot:
            assert await engine.warm(ids, slot) == 0
    assert all(request.max_tokens for request, _ in requests)


async def test_an_edit_while_the_next_prompt_is_read_drops_its_memory(world: World) -> None:
    async with world("delay_ms = 5\nprefill_ms = 50") as service:
        chat = (await service.store.create()).id
        run = await riding(service, chat)
        first = (await service.store.path(chat))[0]
        await run.stop()
        await (await service.edit(first.id, "something else")).wait()
        assert await service.contexts.memories(chat) == []


async def test_a_ride_whose_engine_dies_is_begun_again(world: World) -> None:
    async with world("delay_ms = 5\nprefill_ms = 20") as service:
        chat = (await service.store.create()).id
        engine = await service.pool.open(service.resolve(None))
        run = await riding(service, chat)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await run.wait()
        await until(lambda: engine.state == "loaded" and engine.restarts == 1)
        while not await service.contexts.memories(chat):
            await say(service, chat, LONG)
        assert evaluated(await say(service, chat, "and then")) < 100


@pytest.mark.usefixtures("unhurried")
async def test_a_model_writes_its_memory_in_idle_time_and_rules_do_only_where_that_stays_away(
    world: World,
) -> None:
    async with world(strategy="summary") as service:
        chat = (await service.store.create()).id
        reports = []
        while not (memories := await service.contexts.memories(chat)):
            reports.append((await say(service, chat, LONG)).report)
        assert memories[0].edited_by == "rules"
        assert [late(report) for report in reports if report] == [False] * (len(reports) - 1) + [True]


async def test_what_one_person_s_ride_reads_is_in_no_other_s_prompt(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world(slots=4) as service:
        chats = {word: (await service.store.create()).id for word in ("ape", "bee")}

        async def talk(word: str) -> list[str]:
            said = []
            for number in range(14):
                await say(service, chats[word], f"{number} {word} {LONG}")
                said.append((await service.store.path(chats[word]))[-1].text)
            return said

        answers = dict(zip(chats, await asyncio.gather(*map(talk, chats)), strict=True))
        for word, said in answers.items():
            assert said == [f"{number} {word} {LONG}".strip() for number in range(14)] or said == [
                f"{number} {word} {LONG}" for number in range(14)
            ]
        engine = await service.pool.open(service.resolve(None))
        for request, _ in requests:
            text = await engine.client.detokenize(request.prompt)
            assert not ("ape" in text and "bee" in text)
            assert "ape" in text or "bee" in text or request.max_tokens == 0, "a slice may end before either"


# --- the slots ------------------------------------------------------------------------------------------------


def ready(slots: int) -> SlotQueue:
    queue = SlotQueue(slots, limit=10)
    queue.resume()
    return queue


async def beside(queue: SlotQueue, *, leave: bool = True) -> str:
    """A ride: how its slice ended."""
    async with queue.slot(
        [1], priority=Priority.COMPACTION, session="mine", apart="only", beside=True
    ) as slot:
        await slot.wanted.wait()
    return "left"


async def turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_ride_begins_with_the_first_token_and_leaves_when_another_person_comes() -> None:
    queue = ready(4)
    async with queue.slot([1], session="mine") as mine:
        ride = asyncio.create_task(beside(queue))
        await turns()
        assert not any(slot.beside for slot in queue.slots)
        queue.begun(mine)
        await turns()
        assert sum(slot.beside for slot in queue.slots) == 1
        async with queue.slot([2], session="theirs") as theirs:
            await turns()
            assert ride.done()
            again = asyncio.create_task(beside(queue))
            await turns()
            assert not any(slot.beside for slot in queue.slots)
            queue.begun(theirs)
            await turns()
            assert sum(slot.beside for slot in queue.slots) == 1
            assert queue.others("mine")
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
    assert queue.idle


async def test_only_one_ride_goes_on_at_a_time_and_other_background_waits_as_ever() -> None:
    queue = ready(4)
    async with queue.slot([1], session="mine") as mine:
        queue.begun(mine)
        rides = [asyncio.create_task(beside(queue)) for _ in range(2)]

        async def warming() -> None:
            async with queue.slot([1], priority=Priority.WARMING):
                raise AssertionError("people are being answered")

        other = asyncio.create_task(warming())
        await turns()
        assert sum(slot.beside for slot in queue.slots) == 1
        assert queue.busy == 2
        for task in (*rides, other):
            task.cancel()
        await asyncio.gather(*rides, other, return_exceptions=True)


def report_of(tokens: list[int], *, mark: int = 1000) -> ContextReport:
    """Of a prompt of questions and answers of so many tokens, in turn, behind a memory."""
    kinds = itertools.cycle(("user", "assistant"))
    said = [
        Segment("user" if kind == "user" else "assistant", None, n)
        for kind, n in zip(kinds, tokens, strict=False)
    ]
    segments = (Segment("memory", None, 200), *said)
    total = sum(part.tokens for part in segments)
    return ContextReport("ledger", 2048, 1900, total, segments=segments, high_mark=mark)


def test_room_is_made_some_exchanges_before_the_mark_but_no_more_than_a_fifth_of_it() -> None:
    assert lead_of(report_of([40, 50, 40, 50, 30]), 2) == 30 + 2 * 90
    assert lead_of(report_of([40, 50, 40, 50, 30]), 1) == 30 + 90
    assert lead_of(report_of([40, 300, 40, 300, 30]), 2) == 30 + 200
    assert lead_of(report_of([30]), 2) == 30


def test_room_is_made_early_only_where_the_idle_time_before_was_too_short() -> None:
    report = report_of([40, 310, 40, 310, 30])  # 930 tokens
    assert near(report, hurried=True)
    assert not near(report, hurried=False)
    assert near(report_of([40, 310, 40, 410, 30]), hurried=False)
    assert not near(report_of([40, 310, 30]), hurried=True)


def test_a_slice_takes_a_twentieth_of_the_time_beside_other_people() -> None:
    size, pause = allowance(32, 0.2, others=True)
    assert size == BESIDE_OTHERS
    assert 0.2 / (0.2 + pause) == pytest.approx(SHARE_OTHERS)


async def test_a_slice_that_had_to_make_way_takes_no_more_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, pauses, slot = 0.0, list[float](), SimpleNamespace(ids=[])

    async def warm(ids: list[int], *_: Any, **__: Any) -> None:
        nonlocal now
        now += 0.2
        if not slot.ids:
            slot.ids = ids[:1]
            raise Preempted
        slot.ids = ids

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    engine: Any = SimpleNamespace(
        slot=lambda *_, **__: nullcontext(slot),
        warm=warm,
        info=SimpleNamespace(rollback=True),
        queue=SimpleNamespace(others=lambda _: True),
    )
    conversation: Any = SimpleNamespace(id="c")
    model: Any = SimpleNamespace(adapter="")
    scene = Scene(conversation, model, engine, None, 0.0)
    monkeypatch.setattr(rides, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(rides, "time", SimpleNamespace(monotonic=lambda: now))
    compacting: Any = SimpleNamespace(counted=lambda _: nullcontext())
    nothing: Any = None
    making = Making(nothing, nothing)
    run: Any = SimpleNamespace(whole=False, done=False)
    riding = Riding(nothing, compacting, lambda _: None)
    read = await riding._read(scene, making, run, [1, 2, 3], apart="no")
    assert read.ids == [1, 2, 3]
    assert pauses == [pytest.approx(0.2 * (1 / SHARE_OTHERS - 1))]


async def test_a_ride_does_not_wait_for_a_pause_that_was_owed_to_the_answer_before() -> None:
    memory: Any = object()
    making = Making(SimpleNamespace(rules=memory), memory, memory, again=1e9)  # type: ignore[arg-type]
    rows = [SimpleNamespace(id=name, role=role, status=status) for name, role, status in (
        ("a", "assistant", "complete"), ("b", "user", "complete"), ("c", "assistant", "running"),
    )]  # fmt: skip

    async def path(_: str) -> Any:
        return rows

    async def begun(*_: Any, **given: Any) -> Making:
        assert given == {"tip": "a", "lead": 7}
        return making

    nothing: Any = None
    store: Any = SimpleNamespace(path=path)
    compacting: Any = SimpleNamespace(begun=begun)
    conversation: Any = SimpleNamespace(id="c")
    riding = Riding(store, compacting, lambda _: None)
    found = await riding._due(Scene(conversation, nothing, nothing, None, 0.0), report_of([40]), 7)
    assert found is making
    assert making.again == 0


async def test_a_slice_grows_by_what_whole_ones_take_and_not_by_the_last_few_tokens() -> None:
    slot = SimpleNamespace(ids=list[int]())

    async def warm(ids: list[int], *_: Any, most: int, **__: Any) -> None:
        slot.ids = ids[: len(slot.ids) + most]

    engine: Any = SimpleNamespace(
        slot=lambda *_, **__: nullcontext(slot),
        warm=warm,
        info=SimpleNamespace(rollback=True),
        queue=SimpleNamespace(others=lambda _: False),
    )
    nothing: Any = None
    conversation: Any = SimpleNamespace(id="c")
    model: Any = SimpleNamespace(adapter="")
    scene = Scene(conversation, model, engine, None, 0.0)
    compacting: Any = SimpleNamespace(counted=lambda _: nullcontext())
    riding, making = Riding(nothing, compacting, lambda _: None), Making(nothing, nothing)
    run: Any = SimpleNamespace(whole=False, done=False)
    await riding._read(scene, making, run, list(range(9)), apart="no")
    assert making.slice == 16
    await riding._read(scene, making, run, list(range(9 + 16)), apart="no")
    assert making.slice > 16


@pytest.mark.parametrize(("asked", "size"), [(0, 4), (1, 16)])
async def test_room_that_a_question_came_before_is_made_in_larger_slices(
    monkeypatch: pytest.MonkeyPatch, asked: int, size: int
) -> None:
    now, slot = 0.0, SimpleNamespace(ids=list[int]())

    async def warm(ids: list[int], *_: Any, most: int, **__: Any) -> None:
        nonlocal now
        now += 0.08 + 0.01 * most
        slot.ids = ids[: len(slot.ids) + most]

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    engine: Any = SimpleNamespace(
        slot=lambda *_, **__: nullcontext(slot),
        warm=warm,
        info=SimpleNamespace(rollback=True),
        queue=SimpleNamespace(others=lambda _: False),
    )
    monkeypatch.setattr(rides, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(rides, "time", SimpleNamespace(monotonic=lambda: now))
    nothing: Any = None
    conversation: Any = SimpleNamespace(id="c")
    model: Any = SimpleNamespace(adapter="")
    scene = Scene(conversation, model, engine, None, 0.0)
    compacting: Any = SimpleNamespace(counted=lambda _: nullcontext())
    riding, making = (
        Riding(nothing, compacting, lambda _: None),
        Making(nothing, nothing, asked=asked),
    )
    run: Any = SimpleNamespace(whole=False, done=False)
    await riding._read(scene, making, run, list(range(400)), apart="no")
    assert making.slice == size


def test_a_slice_grows_on_a_fast_engine_and_on_a_slow_one_it_shrinks_and_then_pauses() -> None:
    least, most = SLICES
    size = least
    for _ in range(8):
        size, pause = allowance(size, 0.01, others=False)
        assert pause == 0
    assert size == most
    for _ in range(8):
        size, pause = allowance(size, 1.0, others=False)
    assert size == least
    assert pause == pytest.approx(9.0)
