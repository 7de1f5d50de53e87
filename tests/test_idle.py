"""What happens after an answer, over the echo engine in its real worker process and the real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rallychat import idle
from rallychat.chat import ChatService
from rallychat.engines.protocol import CompletionRequest
from rallychat.messages import Finished
from rallychat.pool import Engine, Slot
from rallychat.settings import Settings
from rallychat.titles import TITLE_PROMPT

World = Callable[..., AbstractAsyncContextManager[ChatService]]
LONG = "tell me all about the harbour and the boats with lemons "


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A service over the echo engine; background work begins at once after an answer."""
    monkeypatch.setattr(idle, "REST", 0.0)

    @asynccontextmanager
    async def opened(options: str = "", **given: Any) -> AsyncIterator[ChatService]:
        models = tmp_path / "catalog" / "models"
        models.mkdir(parents=True, exist_ok=True)
        facts = ['name = "Scripted"', 'family = "echo"', 'engine = "echo"', "window = 1024"]
        lines = [*facts, "[weights]", 'kind = "none"', "[options]", options]
        (models / "scripted.toml").write_text("\n".join(lines))
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


async def say(service: ChatService, conversation_id: str, text: str) -> Finished:
    end = await (await service.turn(conversation_id, text)).wait()
    assert isinstance(end, Finished)
    return end


async def grown(service: ChatService, conversation_id: str, turns: int, *, rest: bool) -> None:
    for number in range(turns):
        await say(service, conversation_id, f"{number} {LONG}")
        if rest:
            await service.idle.settled()


async def until(true: Callable[[], bool]) -> None:
    """Lets the event loop run until something is so."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - a look at the queue, which tells nobody
            await asyncio.sleep(0)


async def due(service: ChatService, conversation_id: str) -> bool:
    model = service.resolve(None)
    engine = await service.pool.open(model)
    limit = service.sampling(model).max_tokens
    conversation = await service.store.get(conversation_id)
    found = await service.contexts.due(conversation, model=model, engine=engine, max_tokens=limit)
    return found is not None


def evaluated(end: Finished) -> int:
    return end.usage.prompt_tokens - end.usage.cached_tokens


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


async def test_a_message_that_arrives_while_memory_is_warmed_finds_the_old_prompt_still_warm(
    world: World,
) -> None:
    async with world("prefill_ms = 20\nbatch = 8") as service:
        chat = (await service.store.create()).id
        engine = await service.pool.open(service.resolve(None))
        while True:
            await say(service, chat, LONG)
            if await due(service, chat):
                break
            await service.idle.settled()
        await until(lambda: any(slot.session == chat and slot.stale for slot in engine.queue.slots))
        end = await say(service, chat, "are you there")
        assert evaluated(end) < 40
        assert await service.contexts.memories(chat) == []
        await service.idle.settled()
        assert len(await service.contexts.memories(chat)) == 1


async def test_an_edit_while_memory_is_made_drops_it(world: World) -> None:
    async with world("prefill_ms = 20\nbatch = 8") as service:
        chat = (await service.store.create()).id
        engine = await service.pool.open(service.resolve(None))
        while True:
            await say(service, chat, LONG)
            if await due(service, chat):
                break
            await service.idle.settled()
        await until(lambda: any(slot.session == chat and slot.stale for slot in engine.queue.slots))
        first = (await service.store.path(chat))[0]
        await (await service.edit(first.id, "something else")).wait()
        await service.idle.settled()
        assert await service.contexts.memories(chat) == []


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
