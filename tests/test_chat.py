"""One turn, end to end, over the echo engine in its real worker process and the real store."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rallychat import answering
from rallychat.bench.scripted import scripted
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, EngineEvent, Tokens
from rallychat.errors import (
    Conflict,
    EngineUnavailable,
    InvalidRequest,
    NotFound,
    RallyChatError,
    SettingsError,
    StoreError,
)
from rallychat.messages import ContextReport, Failed, Finished, Loading, Message, Started, TextDelta
from rallychat.pool import Preempted
from rallychat.runs import Run
from rallychat.settings import Settings
from rallychat.store import Memory
from rallychat.wishes import Asked, Wish

World = Callable[..., AbstractAsyncContextManager[ChatService]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Opens a service over one data folder; call it again for what a restart would see."""

    @asynccontextmanager
    async def opened(options: str = "", **given: Any) -> AsyncIterator[ChatService]:
        scripted(tmp_path, "scripted", options, window=1024)
        settings = Settings(
            data_dir=tmp_path, model="scripted", **{"slots": 2, "stall_timeout": 5.0, **given}
        )
        async with ChatService.open(settings) as service:
            yield service

    return opened


async def conversation(service: ChatService, **given: Any) -> str:
    return (await service.store.create(**given)).id


async def ended(run: Run, text: str | None = None) -> Finished | Failed:
    end = await run.wait()
    if text is not None:
        assert run.text == text
    return end


async def first_text(run: Run) -> None:
    async for event in run.attach():
        if isinstance(event, TextDelta):
            return


async def dialogue(service: ChatService, conversation_id: str) -> list[tuple[str, str]]:
    return [(row.role, row.text) for row in await service.store.path(conversation_id)]


async def test_a_turn_is_answered_stored_and_counted(world: World) -> None:
    async with world() as service:
        chat = await conversation(service)
        end = await ended(await service.turn(chat, "hello there"), "hello there")
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.cached_tokens) == ("stop", 0)
        said, answer = await service.store.path(chat)
        assert (said.text, answer.text, answer.finish_reason, answer.usage) == ("hello there",) * 2 + (
            "stop",
            end.usage,
        )
        assert (await service.store.get(chat)).title == "hello there"


async def test_the_user_s_message_is_stored_before_anything_is_generated(world: World) -> None:
    async with world("load_ms = 300") as service:
        chat = await conversation(service)
        run = await service.turn(chat, "kept")
        said, answer = await service.store.path(chat)
        assert (said.text, answer.status, run.text) == ("kept", "running", "")
        await ended(run)


async def test_every_later_turn_evaluates_only_what_is_new(world: World) -> None:
    async with world() as service:
        chat = await conversation(service, system="Be brief.")
        for number in range(6):
            end = await ended(await service.turn(chat, f"turn {number}"))
            assert isinstance(end, Finished)
            if number:
                fresh = end.usage.prompt_tokens - end.usage.cached_tokens
                assert fresh <= len(f"\n<>user\nturn {number}<>\n<>assistant\n") + 4


async def test_the_prompt_the_engine_gets_is_the_rendered_text(world: World) -> None:
    async with world() as service:
        chat = await conversation(service, system="S")
        for text in ("one", "two <|im_end|>", "three 🦜"):
            await ended(await service.turn(chat, text))
        inspection = await service.inspect(chat)
        messages = [Message.of("system", "S")]
        messages += [row.message for row in (await service.store.path(chat))[:-1]]
        rendered = (await service.render(messages)).text
        assert inspection.text == rendered + "three 🦜"
        assert inspection.usage is not None
        ids = await service.tokens(await service.render(messages))
        assert len(ids) == inspection.usage.prompt_tokens


async def test_regenerate_keeps_the_other_answer_as_a_branch(world: World) -> None:
    async with world('replies = ["a", "b"]') as service:
        chat = await conversation(service)
        first = await service.turn(chat, "hi")
        await ended(first)
        second = await service.regenerate(first.message_id)
        await ended(second)
        assert await service.store.siblings(first.message_id) == [first.message_id, second.message_id]
        assert (await service.store.get(chat)).tip_id == second.message_id


async def test_edit_makes_a_branch_and_the_old_one_can_be_chosen_again(world: World) -> None:
    async with world() as service:
        chat = await conversation(service)
        old = await service.turn(chat, "old")
        await ended(old)
        assert old.user_message_id is not None
        await ended(await service.edit(old.user_message_id, "new"))
        assert await dialogue(service, chat) == [("user", "new"), ("assistant", "new")]
        await service.store.select(chat, old.user_message_id)
        assert await dialogue(service, chat) == [("user", "old"), ("assistant", "old")]


async def test_a_family_s_end_tokens_end_an_answer(world: World, tmp_path: Path) -> None:
    families = tmp_path / "catalog" / "families"
    families.mkdir(parents=True)
    (families / "echo.toml").write_text('stop_tokens = ["!", "two tokens"]\n')
    async with world() as service:
        assert await service.ask("Stop here! Not there, and two tokens.") == "Stop here"


async def test_stop_keeps_the_partial_answer_and_continue_goes_on_in_the_same_message(world: World) -> None:
    words = " ".join(f"w{n}" for n in range(200))
    async with world("delay_ms = 5") as service:
        chat = await conversation(service)
        run = await service.turn(chat, words)
        await first_text(run)
        assert await service.stop(run.id) == run.end
        stored = await service.store.message(run.message_id)
        assert stored.finish_reason == "cancelled"
        assert words.startswith(stored.text)
        assert 0 < len(stored.text) < len(words)
        more = await service.continue_answer(run.message_id, sampling=Sampling(max_tokens=5))
        end = await ended(more)
        assert isinstance(end, Finished)
        again = await service.store.message(run.message_id)
        assert again.text == stored.text + more.text
        assert end.usage.cached_tokens >= end.usage.prompt_tokens - 2


async def test_an_engine_is_told_how_much_of_a_prompt_is_the_answer_so_far(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked, heard = EngineClient.generate, list[CompletionRequest](), 0

    async def pausing(
        client: EngineClient, request: CompletionRequest, **given: str | None
    ) -> AsyncIterator[EngineEvent]:
        nonlocal heard
        asked.append(request)
        async with aclosing(ask(client, request, **given)) as events:
            async for event in events:
                yield event
                heard += isinstance(event, Tokens)
                if heard == 3 and len(asked) == 1:
                    raise Preempted

    monkeypatch.setattr(EngineClient, "generate", pausing)
    async with world("delay_ms = 1") as service:
        words = " ".join(f"w{n}" for n in range(99))
        run = await service.turn(await conversation(service), words, sampling=Sampling(max_tokens=60))
        await ended(run)
        await ended(await service.continue_answer(run.message_id, sampling=Sampling(max_tokens=7)))
    begun, resumed = asked[:2]
    continued = next(request for request in asked if request.max_tokens == 7)
    for request in (resumed, continued):
        assert request.prompt[: -request.said] == begun.prompt
    assert begun.said == 0 < resumed.said < continued.said == 60


async def test_an_answer_to_a_question_that_is_excluded_does_not_go_on(world: World) -> None:
    async with world("delay_ms = 5") as service:
        chat = await conversation(service)
        await ended(await service.turn(chat, "first"), "first")
        run = await service.turn(chat, "word " * 100)
        await first_text(run)
        await service.stop(run.id)
        rows = await service.store.path(chat)
        await service.contexts.mark(rows[-2].id, "exclude")
        refused = await ended(await service.continue_answer(run.message_id))
        assert isinstance(refused, Failed)
        assert "excluded" in refused.message
        assert (await service.store.message(run.message_id)).text == rows[-1].text
        await service.contexts.mark(rows[-1].id, "pin")  # then the exchange stays
        end = await ended(await service.continue_answer(run.message_id, sampling=Sampling(max_tokens=3)))
        assert isinstance(end, Finished)


async def test_a_system_prompt_alone_is_no_question(world: World) -> None:
    async with world() as service:
        alone = service.complete([Message.of("system", "Be brief.")], context=Asked("hybrid"))
        *_, refused = [event async for event in alone]
        assert isinstance(refused, Failed)
        assert "nothing to answer" in refused.message


async def test_a_complete_answer_cannot_be_continued(world: World) -> None:
    async with world() as service:
        run = await service.turn(await conversation(service), "hi")
        await ended(run)
        with pytest.raises(Conflict, match="complete"):
            await service.continue_answer(run.message_id)


async def test_a_conversation_answers_one_message_at_a_time(world: World) -> None:
    async with world("delay_ms = 20") as service:
        chat = await conversation(service)
        run = await service.turn(chat, "slow " * 20)
        with pytest.raises(Conflict, match="still answering"):
            await service.turn(chat, "too soon")
        await service.stop(run.id)
        await ended(await service.turn(chat, "now"), "now")


async def test_two_conversations_interleave(world: World) -> None:
    async with world("delay_ms = 5") as service:
        runs = [await service.turn(await conversation(service), "word " * 30) for _ in range(2)]
        await asyncio.gather(*map(first_text, runs))
        assert not any(run.done for run in runs)
        for run in runs:
            await ended(run)


@pytest.mark.parametrize("text", ["", "  \n"])
async def test_an_empty_message_is_refused_and_nothing_is_stored(world: World, text: str) -> None:
    async with world() as service:
        chat = await conversation(service)
        with pytest.raises(InvalidRequest, match="empty"):
            await service.turn(chat, text)
        assert await service.store.path(chat) == []


async def test_a_question_that_is_refused_gives_no_title(world: World) -> None:
    async with world() as service:
        chat = await conversation(service)
        with pytest.raises(NotFound):
            await service.turn(chat, "What is a rally?", model="no-such-model")
        assert (await service.store.get(chat)).title == ""


async def test_half_a_character_is_refused_by_name(world: World) -> None:
    async with world() as service:
        with pytest.raises(InvalidRequest, match="surrogate"):
            await service.turn(await conversation(service), "a\ud800b")


async def test_unknown_names_are_not_found(world: World) -> None:
    async with world() as service:
        chat = await conversation(service)
        for attempt in (
            service.turn("conv_nope", "hi"),
            service.turn(chat, "hi", model="nope"),
            service.stop("run_nope"),
        ):
            with pytest.raises(NotFound):
                await attempt
        assert await service.store.path(chat) == []


async def test_a_worker_killed_in_the_middle_keeps_the_text_and_the_next_turn_is_answered(
    world: World,
) -> None:
    async with world("delay_ms = 10") as service:
        chats = [await conversation(service) for _ in range(2)]
        runs = [await service.turn(chat, "word " * 100) for chat in chats]
        await asyncio.gather(*map(first_text, runs))
        engine = service.pool.find("scripted")
        assert engine is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        for run in runs:
            end = await run.wait()
            assert isinstance(end, Failed)
            assert end.code == "engine_interrupted"
            stored = await service.store.message(run.message_id)
            assert stored.finish_reason == "interrupted"
            assert stored.text == run.text != ""
        await ended(await service.turn(chats[0], "again"), "again")
        assert engine.restarts == 1


async def test_an_engine_that_dies_before_the_first_token_is_asked_once_more(world: World) -> None:
    async with world("crash_after = 0") as service:
        run = await service.turn(await conversation(service), "hi")
        end = await ended(run)
        assert isinstance(end, Failed)
        engine = service.pool.find("scripted")
        assert engine is not None
        assert engine.restarts >= 1


async def test_an_engine_that_lives_but_can_never_be_asked_is_an_error_after_a_few_attempts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    async def refusing(
        _: EngineClient, request: CompletionRequest, **__: object
    ) -> AsyncIterator[EngineEvent]:
        attempts.append(request.model)
        raise EngineUnavailable("The engine cannot be reached: connection refused.")
        yield

    monkeypatch.setattr(EngineClient, "generate", refusing)
    monkeypatch.setattr(answering, "PAUSE", 0)
    async with world() as service, asyncio.timeout(60):
        end = await (await service.turn((await service.store.create()).id, "hello")).wait()
        assert isinstance(end, Failed)
        assert (end.code, len(attempts)) == ("engine_unavailable", answering.REFUSALS)
        assert "could not be asked 5 times in a row" in end.message
        monkeypatch.undo()
        assert await service.ask("still there?") == "still there?"


async def test_attempts_that_an_engine_heard_of_are_not_among_those_in_a_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, attempts = EngineClient.generate, 0

    async def refusing_but_once(
        client: EngineClient, request: CompletionRequest, **given: str | None
    ) -> AsyncIterator[EngineEvent]:
        nonlocal attempts
        attempts += bool(request.max_tokens)
        if attempts == answering.REFUSALS:
            raise Preempted
        if attempts < 2 * answering.REFUSALS:
            raise EngineUnavailable("The engine cannot be reached: connection refused.")
        async for event in ask(client, request, **given):
            yield event

    monkeypatch.setattr(EngineClient, "generate", refusing_but_once)
    monkeypatch.setattr(answering, "PAUSE", 0)
    async with world() as service, asyncio.timeout(60):
        end = await (await service.turn((await service.store.create()).id, "hello")).wait()
    assert isinstance(end, Finished), end


async def test_an_end_that_was_stored_without_our_hearing_of_it_leaves_no_journal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.runs.TRY_AGAIN", 0)
    async with world() as service, asyncio.timeout(60):
        finish = service.store.answers.finish

        async def unheard(*which: Any, **given: Any) -> None:
            monkeypatch.setattr(service.store.answers, "finish", finish)
            await finish(*which, **given)
            raise StoreError("The connection was lost.")

        monkeypatch.setattr(service.store.answers, "finish", unheard)
        run = await service.turn(await conversation(service), "hello")
        assert isinstance(await run.wait(), Failed)
        while service.runs._unstored:  # noqa: ASYNC110 - which tells nobody
            await asyncio.sleep(0.01)
        assert (await service.store.message(run.message_id)).text == "hello"
        assert [*(tmp_path / "run").glob("*.journal")] == []


async def test_a_silent_engine_is_killed_and_replaced(world: World) -> None:
    async with world(stall_timeout=3) as service:
        chat = await conversation(service)
        end = await ended(await service.turn(chat, "!hang 3"))
        assert isinstance(end, Failed)
        assert end.code == "engine_interrupted"
        await ended(await service.turn(chat, "and now"), "and now")


async def test_a_model_that_does_not_load_says_why_and_can_be_tried_again(world: World) -> None:
    async with world('load_error = "out of memory"') as service:
        chat = await conversation(service)
        for _ in range(2):
            end = await ended(await service.turn(chat, "hi"))
            assert isinstance(end, Failed)
            assert (end.code, "out of memory" in end.message) == ("engine_unavailable", True)
        (card,) = [card for card in await service.models() if card.model.id == "scripted"]
        assert (card.state, "out of memory" in card.note) == ("unavailable", True)


async def test_a_worker_that_gets_no_process_is_an_error_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failing = asyncio.create_subprocess_exec, True

    async def short_of_files(*command: str, **given: Any) -> asyncio.subprocess.Process:
        nonlocal failing
        if failing:
            failing = False
            raise OSError(errno.EMFILE, "Too many open files")
        return await start(*command, **given)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_files)
    async with world() as service, asyncio.timeout(60):
        chat = await conversation(service)
        end = await ended(await service.turn(chat, "hi"))
        assert isinstance(end, Failed)
        assert (end.code, "Too many open files" in end.message) == ("engine_unavailable", True)
        await ended(await service.turn(chat, "and now"), "and now")
        engine = service.pool.find("scripted")
        assert engine is not None
        assert engine.pid is not None
        failing = True  # a restart that fails is followed by another
        os.kill(engine.pid, signal.SIGKILL)
        await engine.recover(hung=False)
        assert failing is False
        await ended(await service.turn(chat, "still there"), "still there")


async def test_the_end_of_the_service_stores_what_was_running_as_interrupted(world: World) -> None:
    async with world("delay_ms = 10") as service:
        chat = await conversation(service)
        run = await service.turn(chat, "word " * 100)
        await first_text(run)
    async with world() as service:
        stored = await service.store.message(run.message_id)
        assert (stored.finish_reason, stored.status) == ("interrupted", "complete")
        assert stored.text == run.text != ""


async def test_a_conversation_longer_than_the_window_goes_on_and_names_what_it_dropped(world: World) -> None:
    async with world(window=512) as service:
        chat = await conversation(service, system="Remember the system prompt.")
        for number in range(14):
            end = await ended(await service.turn(chat, f"message {number} " + "x" * 40))
            assert isinstance(end, Finished), end
        path = await service.store.path(chat)
        report = path[-1].report
        assert report is not None
        left = [*report.dropped, *report.compacted]
        assert sorted([*left, *report.kept]) == [row.id for row in path[:-1]]
        inspection = await service.inspect(chat)
        assert "Remember the system prompt." in inspection.text
        assert "message 0 " not in inspection.text
        reports = [(await service.store.message(row.id)).report for row in path if row.role == "assistant"]
        trims = [r.divergence for r in reports if r is not None and "left" in r.divergence]
        assert 1 <= len(trims) <= len(reports) // 2  # room is made for several turns at a time


async def test_room_is_made_from_the_memory_that_is_in_force_when_it_is_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(strategy="full", window=512) as service:
        chat, store = await conversation(service), service.store.contexts
        remember, attempts = store.remember, 0

        async def overtaken(conversation_id: str, memory: Memory, **given: Any) -> Memory:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                newest = (await service.store.path(chat))[-3].id
                await remember(chat, Memory("cut", "", newest, why="by somebody else"))
            return await remember(conversation_id, memory, **given)

        monkeypatch.setattr(store, "remember", overtaken)
        while not attempts:
            run = await service.turn(chat, "x" * 60)
            await ended(run)
        assert [memory.why for memory in await service.contexts.memories(chat)] == ["by somebody else"]
        report = (await service.store.message(run.message_id)).report
        assert report is not None
        assert report.memory == 1
        assert len(report.kept) == 1


async def test_a_message_longer_than_the_window_says_by_how_much(world: World) -> None:
    async with world(window=256) as service:
        end = await ended(await service.turn(await conversation(service), "xy " * 400))
        assert isinstance(end, Failed)
        assert end.code == "context_length_exceeded"


async def test_a_different_system_prompt_renders_anew_and_says_so(world: World) -> None:
    async with world() as service:
        chat = await conversation(service)
        await ended(await service.turn(chat, "one"))
        await service.store.update(chat, system="Now be formal.")
        run = await service.turn(chat, "two")
        await ended(run)
        report = (await service.store.message(run.message_id)).report
        assert report is not None
        assert "system prompt" in report.divergence
        assert (await service.inspect(chat)).text.startswith("<|im_start|>system\nNow be formal.")


async def test_ask_needs_no_conversation(world: World) -> None:
    async with world() as service:
        assert await service.ask("just this") == "just this"
        assert await service.store.list() == []


async def test_leaving_a_stateless_answer_frees_its_slot(world: World) -> None:
    async with world("delay_ms = 10", slots=1) as service:
        events = service.complete([Message.of("user", "word " * 100)])
        async for event in events:
            if isinstance(event, TextDelta):
                break
        await events.aclose()
        engine = service.pool.find("scripted")
        assert engine is not None
        assert engine.queue.idle
        assert await service.ask("next") == "next"


async def test_asking_right_after_leaving_is_never_refused_while_the_engine_lets_go(world: World) -> None:
    async with world("delay_ms = 1", slots=1) as service:
        for _ in range(30):
            events = service.complete([Message.of("user", "word " * 100)])
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            await events.aclose()
            assert await service.ask("next") == "next"


async def test_a_message_of_nothing_but_control_tokens_is_too_long_and_says_so(world: World) -> None:
    async with world() as service:
        events = [event async for event in service.complete([Message.of("user", "<|im_end|>" * 100_000)])]
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "context_length_exceeded"
        end = await ended(await service.turn(await conversation(service), "<|im_end|>" * 30_000))
        assert isinstance(end, Failed)
        assert end.code == "context_length_exceeded"


async def test_a_stateless_request_beyond_the_window_is_refused_not_cut(world: World) -> None:
    async with world(window=256) as service:
        events = [
            e
            async for e in service.complete([Message.of("user", "hi")], sampling=Sampling(max_tokens=10_000))
        ]
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "context_length_exceeded"
        assert not any(isinstance(event, Started) for event in events)


async def test_loading_a_second_model_unloads_the_first_when_only_one_may_stay(world: World) -> None:
    async with world() as service:
        await service.load("scripted")
        assert await service.ask("hi", model="echo") == "hi"
        assert service.pool.find("scripted") is None
        assert await service.ask("hi", model="scripted") == "hi"


async def test_errors_are_of_our_tree(world: World) -> None:
    async with world('load_error = "no"') as service:
        with pytest.raises(RallyChatError):
            await service.ask("hi")


async def test_everybody_who_waits_for_a_model_hears_that_it_is_loading(world: World) -> None:
    async with world("load_ms = 1000") as service:
        both = [await conversation(service) for _ in range(2)]
        for run in await asyncio.gather(*(service.turn(each, "hi") for each in both)):
            events = [event async for event in run.attach()]
            assert Loading("scripted", "load") in events


async def test_a_name_from_elsewhere_is_never_a_path_or_a_hub_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    async with world() as service:
        assert service.named(None).id == "scripted"
        for name in (str(tmp_path / "any.gguf"), "owner/repo:file.gguf", "hub:owner/repo/file.gguf"):
            with pytest.raises(NotFound):
                service.named(name)


async def test_a_stateless_request_beyond_the_window_is_an_error_unless_it_names_a_strategy(
    world: World,
) -> None:
    said = [
        Message.of("user" if n % 2 == 0 else "assistant", f"m{n} my cat is Miro " + "word " * 12)
        for n in range(25)
    ]
    async with world(window=512) as service:
        *_, refused = [event async for event in service.complete(said)]
        assert isinstance(refused, Failed)
        assert refused.code == "context_length_exceeded"
        asked = Asked("hybrid", pin=(0,), exclude=(3,))
        *_, end = [event async for event in service.complete(said, context=asked)]
    assert isinstance(end, Finished)
    report = end.report
    assert report is not None
    every = [*report.kept, *report.compacted, *report.dropped, *report.excluded]
    assert sorted(map(int, every)) == list(range(25))
    assert report.kept[0] == "0"
    assert report.kept[-1] == "24"
    assert report.excluded == ("3",)
    assert report.prompt_tokens <= report.budget < 512


async def test_a_person_s_word_on_memory_and_messages_holds(world: World) -> None:
    async with world(window=512) as service:
        chat = await conversation(service)
        for number in range(12):
            await ended(await service.turn(chat, f"message {number} " + "x" * 40))
        await service.idle.settled()
        made = await service.contexts.memory(chat)
        assert made is not None
        edited = await service.contexts.edit_memory(chat, "The person is called Ada.")
        assert (edited.version, edited.edited_by) == (made.version + 1, "user")
        await ended(await service.turn(chat, "who am I"))
        inspection = await service.inspect(chat)
        assert "The person is called Ada." in inspection.text
        assert inspection.report is not None
        assert inspection.report.memory >= edited.version
        held = await service.contexts.memory(chat)
        before = await service.contexts.revert_memory(chat)
        assert held is not None
        assert before is not None
        assert before.version < held.version
        assert [m.active for m in await service.contexts.memories(chat)][-1] is False
        first = (await service.store.path(chat))[0]
        await service.contexts.mark(first.id, "pin")
        run = await service.turn(chat, "again")
        await ended(run)
        report = (await service.store.message(run.message_id)).report
        assert report is not None
        assert report.kept[0] == first.id
        once = await service.turn(chat, "once", wish=Wish("last_n", 200, exclude=(first.id,)))
        await ended(once)
        report = (await service.store.message(once.message_id)).report
        assert report is not None
        assert (report.strategy, report.budget, report.excluded) == ("last_n", 200, (first.id,))
        assert (await service.contexts.set_strategy(chat, "full")).strategy == "full"
        with pytest.raises(InvalidRequest):
            await service.contexts.set_strategy(chat, "best")


async def test_a_model_says_how_its_conversations_are_kept_before_its_family_does(tmp_path: Path) -> None:
    families, models = tmp_path / "catalog" / "families", tmp_path / "catalog" / "models"
    for folder in (families, models):
        folder.mkdir(parents=True)
    (families / "echo.toml").write_text('[context]\nstrategy = "ledger"\nexchanges = 2\n')
    model = 'name = "{}"\nfamily = "echo"\nengine = "echo"\nweights.kind = "none"\n'
    (models / "plain.toml").write_text(model.format("Plain"))
    (models / "short.toml").write_text(model.format("Short") + '[context]\nstrategy = "last_n"\n')
    (models / "one.toml").write_text(model.format("One") + '[context]\nstrategy = "last_n"\nexchanges = 1\n')

    async def kept(name: str) -> ContextReport:
        chat = await service.store.create(model=name)
        for number in range(5):
            await (await service.turn(chat.id, f"Note {number}.")).wait()
        report = (await service.store.path(chat.id))[-1].report
        assert report is not None
        return report

    async with ChatService.open(Settings(data_dir=tmp_path, model="echo")) as service:
        reports = {name: await kept(name) for name in ("plain", "short", "one")}
        assert [report.strategy for report in reports.values()] == ["ledger", "last_n", "last_n"]
        assert [len(report.kept) for report in reports.values()] == [9, 5, 3]
    async with ChatService.open(Settings(data_dir=tmp_path, model="echo", strategy="full")) as service:
        assert (await kept("one")).strategy == "full"


@pytest.mark.parametrize("kind", ["models", "families"])
async def test_a_file_that_names_no_strategy_is_refused_at_the_start(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "catalog" / kind / "echo.toml"
    file.parent.mkdir(parents=True)
    file.write_text('context.strategy = "amnesia"\n')
    with pytest.raises(SettingsError, match="'amnesia', which is not a strategy") as caught:
        async with ChatService.open(Settings(data_dir=tmp_path, model="echo")):
            raise AssertionError("it began")
    assert str(file) in caught.value.message
