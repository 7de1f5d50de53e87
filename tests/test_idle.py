"""What happens after an answer, over the echo engine in its real worker process and the real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rallychat import idle
from rallychat.basis import Basis
from rallychat.bench.scripted import scripted
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.compacting import Compacting
from rallychat.context.types import Compaction
from rallychat.contexts import Contexts
from rallychat.engines.protocol import CompletionRequest, EngineEvent
from rallychat.latency import Latencies
from rallychat.messages import ContextReport, Finished, Started, TextDelta
from rallychat.pool import Engine, Slot
from rallychat.settings import Settings
from rallychat.store import Memory
from rallychat.titles import TITLE_PROMPT
from rallychat.wishes import AS_EVER, Wish

World = Callable[..., AbstractAsyncContextManager[ChatService]]
LONG = "tell me all about the harbour and the boats with lemons "


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A service over the echo engine; background work begins at once after an answer."""
    monkeypatch.setattr(idle, "REST", 0.0)

    @asynccontextmanager
    async def opened(options: str = "", **given: Any) -> AsyncIterator[ChatService]:
        scripted(tmp_path, "scripted", options, window=1024)
        settings = Settings(
            data_dir=tmp_path,
            model="scripted",
            **{"slots": 2, "strategy": "ledger", "titles": False, **given},
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
def reading(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once new memory is read in a slot of its own; that first reading goes on until it is left."""
    begun = asyncio.Event()
    generate = Engine.generate

    async def holding(self: Engine, request: Any, slot: Slot, **given: Any) -> AsyncIterator[EngineEvent]:
        async with aclosing(generate(self, request, slot, **given)) as events:
            async for event in events:
                if slot.stale and not begun.is_set():
                    begun.set()
                    await asyncio.Event().wait()
                yield event

    monkeypatch.setattr(Engine, "generate", holding)
    return begun


async def say(service: ChatService, conversation_id: str, text: str, wish: Wish = AS_EVER) -> Finished:
    end = await (await service.turn(conversation_id, text, wish=wish)).wait()
    assert isinstance(end, Finished)
    return end


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory is made beside an answer, however little idle time there was before it."""
    monkeypatch.setattr(idle, "near", lambda report, *, hurried: False)


async def grown(service: ChatService, conversation_id: str, turns: int, *, rest: bool) -> None:
    for number in range(turns):
        await say(service, conversation_id, f"{number} {LONG}")
        if rest:
            await service.idle.settled()


async def grown_until_due(service: ChatService, conversation_id: str) -> None:
    """Room is due after the newest answer, and may be in the making."""
    while True:
        await say(service, conversation_id, LONG)
        if await due(service, conversation_id):
            return
        await service.idle.settled()


async def until(true: Callable[[], bool]) -> None:
    """Lets the event loop run until something is so."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - a look at the queue, which tells nobody
            await asyncio.sleep(0)


async def test_work_that_other_work_takes_the_place_of_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def preparing(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def riding(*_: Any, **__: Any) -> None: ...

    async with world() as service:
        monkeypatch.setattr(service.idle, "_work", preparing)
        monkeypatch.setattr(service.idle, "_ride", riding)
        service.idle.opened("conv")
        await begun.wait()
        tell = service.idle.watching("conv", lambda _: None)
        tell(Started(ContextReport("hybrid", 64, 64, prompt_tokens=9, high_mark=1)))
        tell(TextDelta("first"))
        async with asyncio.timeout(30):
            await left.wait()


async def due(service: ChatService, conversation_id: str, wish: Wish = AS_EVER) -> bool:
    model = service.resolve(None)
    engine = await service.pool.open(model)
    limit = service.sampling(model).max_tokens
    conversation = await service.store.get(conversation_id)
    found = await service.contexts.due(conversation, model=model, engine=engine, max_tokens=limit, wish=wish)
    return found is not None


def evaluated(end: Finished) -> int:
    return end.usage.prompt_tokens - end.usage.cached_tokens


async def test_a_service_that_never_rests_keeps_so_much_work_waiting_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []

    async def waiting(conversation_id: str, *_: Any, **__: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(conversation_id)

    async with world() as service:
        monkeypatch.setattr(service.idle, "_work", waiting)
        for number in [*range(idle.WAITING), 0, idle.WAITING, idle.WAITING + 1]:
            await asyncio.sleep(0)  # what was begun before waits by now
            service.idle.answered(str(number))
        await until(lambda: len(left) == 2)
        assert left == ["1", "2"], "0 was answered anew, and waits at the end"


async def test_a_machine_is_measured_when_a_model_is_loaded_and_nobody_speaks_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    async def measure(_: Latencies, engine: Engine) -> None:
        measured.append(engine.spec.model)

    monkeypatch.setattr(Latencies, "measure", measure)
    async with world() as service:
        await service.load("scripted")
        await until(lambda: measured == ["scripted"])


async def test_after_an_answer_the_end_of_its_turn_is_already_evaluated(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        await say(service, chat, "one")
        await service.idle.settled()
        warm = evaluated(await say(service, chat, "two"))
        cold = (await service.store.create()).id
        await say(service, cold, "ape")
        service.idle.leave(cold)
        assert warm < evaluated(await say(service, cold, "two"))


async def test_older_turns_become_memory_and_the_next_prompt_is_warm(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        memories = []
        for number in range(12):
            end = await say(service, chat, f"{number} {LONG}")
            assert evaluated(end) < 100 or number == 0
            await service.idle.settled()
            memories.append(len(await service.contexts.memories(chat)))
        assert memories[-1] > 0
        first = memories.index(1)
        report = (await service.store.path(chat))[-1].report
        assert report is not None
        assert report.compacted or report.dropped
        assert report.memory == memories[-2]
        assert first > 1


async def test_a_prompt_is_swapped_in_another_slot_and_the_old_one_is_free(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        engine = await service.pool.open(service.resolve(None))
        homes = set()
        while not await service.contexts.memories(chat):
            await say(service, chat, LONG)
            before = engine.queue.home(chat)
            await service.idle.settled()
            homes.add(before)
        after = engine.queue.home(chat)
        assert after not in homes
        assert all(slot is not None and slot.stale for slot in homes)


@pytest.mark.usefixtures("alone")
async def test_a_message_that_arrives_while_memory_is_warmed_finds_the_old_prompt_still_warm(
    world: World, reading: asyncio.Event
) -> None:
    async with world("batch = 8") as service:
        chat = (await service.store.create()).id
        await grown_until_due(service, chat)
        await reading.wait()
        end = await say(service, chat, "are you there")
        assert evaluated(end) < 40
        assert await service.contexts.memories(chat) == []
        await service.idle.settled()
        assert len(await service.contexts.memories(chat)) == 1


@pytest.mark.usefixtures("alone")
async def test_room_for_which_one_idle_time_was_too_short_is_begun_so_much_earlier_the_next_time(
    world: World, reading: asyncio.Event
) -> None:
    async with world("batch = 8") as service:
        chat = (await service.store.create()).id
        await grown_until_due(service, chat)
        await reading.wait()  # and the next question comes before it is there
        for _ in range(24):
            await say(service, chat, LONG)
            await service.idle.settled()
        whys = [memory.why for memory in await service.contexts.memories(chat)]
        assert ["about to pass" in why for why in whys[:3]] == [False, True, False]


async def test_who_speaks_at_once_leaves_what_went_on_beside_the_answer_too(world: World) -> None:
    async with world() as service:
        ride = service.idle._tasks["c"] = asyncio.create_task(asyncio.sleep(60))
        service.idle.answered("c")
        service.idle.leave("c")  # before what follows the ride has begun
        await asyncio.wait([ride])
        assert ride.cancelled()


async def test_an_edit_while_memory_is_made_drops_it(world: World, reading: asyncio.Event) -> None:
    async with world("batch = 8") as service:
        chat = (await service.store.create()).id
        await grown_until_due(service, chat)
        await reading.wait()
        first = (await service.store.path(chat))[0]
        await (await service.edit(first.id, "something else")).wait()
        await service.idle.settled()
        assert await service.contexts.memories(chat) == []


@pytest.mark.usefixtures("alone")
async def test_memory_that_was_not_finished_is_made_after_a_restart(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        while True:
            await say(service, chat, LONG)
            service.idle.leave(chat)
            if await due(service, chat):
                break
        assert await service.contexts.memories(chat) == []
    async with world() as service:
        await service.load("scripted")
        await service.open_conversation(chat)
        await service.idle.settled()
        assert len(await service.contexts.memories(chat)) == 1
        assert evaluated(await say(service, chat, "hello again")) < 40


# --- what a message asked of its context ---------------------------------------------------------------------


async def test_idle_time_keeps_to_the_strategy_that_a_message_asked_for(world: World) -> None:
    async with world(strategy="full") as service:
        chat = (await service.store.create()).id
        for number in range(6):
            end = await say(service, chat, f"{number} {LONG}", Wish(strategy="ledger"))
            assert evaluated(end) < 100 or number == 0
            await service.idle.settled()
        assert {memory.kind for memory in await service.contexts.memories(chat)} == {"ledger"}


@pytest.mark.usefixtures("alone")
async def test_idle_time_keeps_to_what_a_message_asked_for_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Wish(strategy="ledger")
    monkeypatch.setattr(idle, "REST", 600.0)
    async with world(strategy="full") as service:
        chat = (await service.store.create()).id
        while not await due(service, chat, wish):
            await say(service, chat, LONG, wish)
        async with asyncio.timeout(10):
            while (await service.store.get(chat)).asked is None:  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(0)
        assert await service.contexts.memories(chat) == []
    monkeypatch.setattr(idle, "REST", 0.0)
    async with world(strategy="full") as service:
        await service.load("scripted")
        await service.open_conversation(chat)
        await service.idle.settled()
        assert [memory.kind for memory in await service.contexts.memories(chat)] == ["ledger"]
        await say(service, chat, LONG)
        await service.idle.settled()
        assert (await service.store.get(chat)).asked is None


async def test_idle_time_makes_no_memory_that_a_message_did_not_ask_for(world: World) -> None:
    async with world(strategy="ledger") as service:
        chat = (await service.store.create()).id
        while not await due(service, chat):
            end = await say(service, chat, LONG, Wish(strategy="full"))
            await service.idle.settled()
        assert await service.contexts.memories(chat) == []
        await say(service, chat, LONG)
        await service.idle.settled()
        assert end.report is not None
        assert end.report.strategy == "full"
        assert [memory.kind for memory in await service.contexts.memories(chat)] == ["ledger"]


async def test_idle_time_keeps_to_the_budget_and_the_exclusions_that_a_message_asked_for(
    world: World,
) -> None:
    async with world() as service:
        boats = "all about the boats"
        chat = (await service.store.create()).id
        await say(service, chat, boats)
        secret = (await service.store.path(chat))[0].id
        wish = Wish(budget=400, exclude=(secret,))
        while not await service.contexts.memories(chat):
            end = await say(service, chat, boats, wish)
            assert evaluated(end) < 100
            await service.idle.settled()
        memory = (await service.contexts.memories(chat))[-1]
        assert "a budget of 400 tokens was asked for" in memory.why
        assert secret not in memory.covers


async def test_idle_time_prepares_for_the_model_that_a_message_asked_for_until_another_is_chosen(
    world: World,
) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        await (await service.turn(chat, LONG, model="echo")).wait()
        await service.idle.settled()
        other = await service.pool.open(service.resolve("echo"))
        assert other.background_tokens
        await service.load("scripted")
        await service.store.update(chat, model="scripted")
        await service.open_conversation(chat)
        await service.idle.settled()
        assert (await service.pool.open(service.resolve("scripted"))).background_tokens


async def test_memory_in_the_making_is_dropped_when_the_next_message_asks_for_another_strategy(
    world: World,
) -> None:
    async with world("prefill_ms = 20\nbatch = 8") as service:
        chat = (await service.store.create()).id
        engine = await service.pool.open(service.resolve(None))
        await grown_until_due(service, chat)
        await until(lambda: any(slot.session == chat and slot.stale for slot in engine.queue.slots))
        await say(service, chat, LONG, Wish(strategy="full"))
        await service.idle.settled()
        assert await service.contexts.memories(chat) == []


async def test_room_for_which_nothing_is_written_yet_is_made_anew_of_what_was_said_since() -> None:
    found: list[tuple[Compaction, Basis]] = []

    async def due(*_: Any, **__: Any) -> tuple[Compaction, Basis]:
        rules = Memory("ledger", "", "m1")
        found.append((Compaction("m1", rules, "", ask="Sum it up."), Basis((), (("m1", None),), ())))
        return found[-1]

    async def basis(*_: Any, **__: Any) -> Basis:
        return found[-1][1]

    nothing: Any = None
    scene: Any = SimpleNamespace(
        session="c", conversation=nothing, model=nothing, engine=nothing, max_tokens=9, wish=AS_EVER
    )
    compacting = Compacting(SimpleNamespace(due=due, basis=basis), nothing)  # type: ignore[arg-type]
    await compacting.begun(scene)
    compacting.asked("c")
    making = await compacting.begun(scene)
    assert making is not None
    assert (len(found), making.due is found[1][0], making.asked) == (2, True, 1)
    making.memory = making.due.rules
    assert await compacting.begun(scene) is making


async def test_memory_in_the_making_is_held_to_who_answers_and_at_what_length(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        answer = (await service.store.path(chat))[-1].id
        ways = [("scripted", 64), ("scripted", 64), ("scripted", 128), ("echo", 64)]
        found = [
            await service.contexts.basis(chat, answer, model=service.resolve(name), max_tokens=most)
            for name, most in ways
        ]
        assert found[0] == found[1]
        assert len(set(found)) == 3


async def test_what_a_person_remembers_just_before_a_swap_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Contexts.commit

    async def overtaken(self: Contexts, conversation_id: str, memory: Memory, **given: Any) -> Memory:
        mine = replace(memory, text="My name is Ada.", edited_by="user")
        await commit(self, conversation_id, mine)
        return await commit(self, conversation_id, memory, **given)

    async with world() as service:
        chat = (await service.store.create()).id
        monkeypatch.setattr(Contexts, "commit", overtaken)
        await grown_until_due(service, chat)
        await service.idle.settled()
        assert [memory.text for memory in await service.contexts.memories(chat)] == ["My name is Ada."]


async def test_a_summary_is_sampled_as_its_own_generation_config_says(
    world: World, requests: list[tuple[CompletionRequest, int]], tmp_path: Path
) -> None:
    config = tmp_path / "summary.yaml"
    config.write_text(
        "generation_config:\n  temperature: 0.3\n  top_k: 7\n  do_sample: true\n  max_new_tokens: 25\n"
    )
    given = {
        "strategy": "summary",
        "gen_config_summarization_path": config,
        "summary_prompt": "Sum it all up",
    }
    async with world('replies = ["lemons in the harbour are many"]', **given) as service:
        chat = (await service.store.create()).id
        while not (memories := await service.contexts.memories(chat)):
            await say(service, chat, LONG)
            await service.idle.settled()
        assert (memories[-1].kind, memories[-1].text) == ("summary", "lemons in the harbour are many")
        [asked] = [one for one, _ in requests if one.top_k == 7]
        assert (asked.temperature, asked.max_tokens) == (0.3, 25)


async def test_opening_a_conversation_warms_it(world: World) -> None:
    async with world(slots=1) as service:
        chats = [(await service.store.create()).id for _ in range(2)]
        for number, chat in enumerate(chats):
            await say(service, chat, f"{number} {LONG}")
            await service.idle.settled()
        await service.open_conversation(chats[0])
        await service.idle.settled()
        assert evaluated(await say(service, chats[0], "hello again")) < 40
        assert evaluated(await say(service, chats[1], "hello again")) > 40


async def opened_while_another_is_answered(service: ChatService, rest: bool, turns: int) -> tuple[str, str]:
    """A conversation without a cache, opened while the other one, which has it, is answered; and the other."""
    opened, other = [(await service.store.create()).id for _ in range(2)]
    await grown(service, opened, turns, rest=rest)
    service.idle.leave(opened)
    run = await service.turn(other, f"hello {LONG}")
    await service.open_conversation(opened)
    await run.wait()
    service.idle.leave(other)
    await service.idle.settled()
    return opened, other


async def test_warming_what_was_opened_leaves_the_caches_of_those_who_were_answered_since(
    world: World,
) -> None:
    async with world(slots=1) as service:
        _, other = await opened_while_another_is_answered(service, True, 1)
        assert evaluated(await say(service, other, "hello again")) < 40


async def test_room_is_made_by_rules_where_no_slot_can_be_had_for_a_prompt_without_a_cache(
    world: World,
) -> None:
    async with world(slots=1, strategy="ledger") as service:
        turns = 1
        opened, other = await opened_while_another_is_answered(service, False, turns)
        while not await service.contexts.memories(opened):
            turns += 1
            assert turns < 30
            opened, other = await opened_while_another_is_answered(service, False, turns)
        assert evaluated(await say(service, other, "hello again")) < 40


async def test_an_engine_that_died_is_warmed_again_when_it_is_back(world: World) -> None:
    async with world() as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        await service.idle.settled()
        other = (await service.store.create()).id
        await (await service.turn(other, "!crash 0")).wait()
        engine = await service.pool.open(service.resolve(None))
        await until(
            lambda: engine.restarts == 2
        )  # it is asked once more, and its death is seen a moment later
        await engine.ready()
        await service.idle.settled()
        assert evaluated(await say(service, chat, "hello again")) < 40


async def test_a_title_is_asked_behind_the_live_prompt_and_leaves_its_cache_alone(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world('replies = ["lemons", "Harbour Boats and Lemons", "yes"]', titles=True) as service:
        chat = (await service.store.create()).id
        first = await say(service, chat, LONG)
        await service.idle.settled()
        assert (await service.store.get(chat)).title == "Harbour Boats and Lemons"
        asked = next(request for request, _ in requests if request.max_tokens == 24)
        assert asked.prompt[: first.usage.prompt_tokens] == requests[0][0].prompt
        assert len({slot for _, slot in requests}) == 1
        assert evaluated(await say(service, chat, "and then")) < 40


async def test_a_title_that_a_person_gave_stays(world: World) -> None:
    async with world('replies = ["lemons", "Harbour Boats and Lemons"]', titles=True) as service:
        chat = (await service.store.create()).id
        run = await service.turn(chat, LONG)
        await service.store.update(chat, title="Mine")
        await run.wait()
        await service.idle.settled()
        assert (await service.store.get(chat)).title == "Mine"


async def test_a_model_whose_titles_are_none_is_not_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "REST", 0.0)
    scripted(tmp_path, "scripted", 'replies = ["lemons", "Harbour Boats and Lemons"]', window=1024)
    facts = tmp_path / "catalog" / "models" / "scripted.toml"
    facts.write_text(f"titles = false\n{facts.read_text()}")
    async with ChatService.open(Settings(data_dir=tmp_path, model="scripted", slots=2)) as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        await service.idle.settled()
        assert (await service.store.get(chat)).title.startswith("tell me all about")


async def test_titles_can_be_switched_off(world: World) -> None:
    async with world('replies = ["lemons", "Harbour Boats and Lemons"]') as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        await service.idle.settled()
        assert (await service.store.get(chat)).title.startswith("tell me all about")


# --- an engine that cannot drop the tail of a cache ----------------------------------------------------------

ONE_WAY = 'rollback = false\nreplies = ["lemons", "Harbour Boats and Lemons", "yes"]'


async def told(service: ChatService, conversation_id: str) -> Finished:
    """A second turn, after what there was to do in idle time."""
    await service.idle.settled()
    return await say(service, conversation_id, "and then")


async def test_without_rollback_a_title_is_asked_in_another_slot_and_the_live_cache_lives(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world(ONE_WAY, titles=True) as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        end = await told(service, chat)
        assert (await service.store.get(chat)).title == "Harbour Boats and Lemons"
        (asked,) = {slot for request, slot in requests if request.max_tokens == 24}
        (home,) = {slot for request, slot in requests if request.max_tokens not in (0, 24)}
        assert asked != home
        assert evaluated(end) < 40


async def test_without_rollback_and_another_slot_no_title_is_asked_and_the_live_cache_lives(
    world: World, requests: list[tuple[CompletionRequest, int]]
) -> None:
    async with world(ONE_WAY, titles=True, slots=1) as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        assert evaluated(await told(service, chat)) < 40
        assert (await service.store.get(chat)).title.startswith("tell me all about")
        assert not [request for request, _ in requests if request.max_tokens == 24]


async def test_without_rollback_a_question_like_the_title_s_does_not_leave_the_live_cache(
    world: World,
) -> None:
    async with world(ONE_WAY, titles=True) as service:
        chat = (await service.store.create()).id
        await say(service, chat, LONG)
        await service.idle.settled()
        assert evaluated(await say(service, chat, TITLE_PROMPT)) < 100


async def test_without_rollback_a_stranger_takes_no_cache_of_which_it_could_reuse_nothing(
    world: World,
) -> None:
    system = f"You are a guide. {LONG * 4}"
    async with world("rollback = false") as service:
        chats = [(await service.store.create(system=system)).id for _ in range(2)]
        for chat, word in zip(chats, ("ape", "bee"), strict=True):
            await say(service, chat, word)
            await service.idle.settled()
        assert evaluated(await say(service, chats[0], "hello again")) < 40


@pytest.mark.parametrize("slots", [1, 2])
async def test_without_rollback_a_summary_spares_the_live_cache_or_rules_write_it(
    world: World, requests: list[tuple[CompletionRequest, int]], slots: int
) -> None:
    async with world(
        "rollback = false", strategy="summary", slots=slots, summary_prompt="!say lemons and boats"
    ) as service:
        chat = (await service.store.create()).id
        while not (made := await service.contexts.memories(chat)):
            end = await say(service, chat, LONG)
            assert evaluated(end) < 200
            await service.idle.settled()
        assert made[0].edited_by == ("rules" if slots == 1 else "model")
        asked = [slot for request, slot in requests if 0 < request.max_tokens < 200]
        assert bool(asked) is (slots > 1)
        assert evaluated(await say(service, chat, "hello again")) < 40


@pytest.mark.usefixtures("alone")
async def test_a_short_answer_that_was_asked_for_leaves_the_live_cache_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle work once reckoned with the model's own long answers, made room for them, and warmed that instead."""

    async def no_time(*_: object) -> None:
        """Compaction that never comes to its end."""

    monkeypatch.setattr(idle.Idle, "_compact", no_time)
    async with world(latency_factor=0) as service:
        chat = (await service.store.create()).id
        short, lengths = Sampling(max_tokens=8), []
        for number in range(16):
            end = await (await service.turn(chat, f"{number} {LONG}", sampling=short)).wait()
            assert isinstance(end, Finished)
            await service.idle.settled()
            lengths.append(end.usage.prompt_tokens)
            if sorted(lengths) != lengths:  # room was made
                break
            assert evaluated(end) < 2 * len(LONG)
        assert max(lengths) > 800
