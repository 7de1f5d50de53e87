"""A running answer belongs to the server: watched by many, left and found again, stopped, stored whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rallychat.errors import ContextOverflow, NotFound, StoreError
from rallychat.messages import Event, Failed, Finished, Queued, TextDelta
from rallychat.runs import Emit, End, Run, Runs


class Script:
    """An answer that says a word each time it is told to."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.ends: list[End] = []

    def say(self, word: str | Exception | None) -> None:
        self._words.put_nowait(word)

    async def produce(self, emit: Emit) -> Finished:
        while (word := await self._words.get()) is not None:
            if isinstance(word, Exception):
                raise word
            emit(TextDelta(word))
        return Finished("stop")

    async def conclude(self, end: End) -> End:
        self.ends.append(end)
        return end

    def run(self, conclude: Callable[[End], Awaitable[End]] | None = None) -> Run:
        return Run(self.produce, conclude or self.conclude, conversation_id="c", message_id="m")


async def watched(run: Run) -> list[Event]:
    return [event async for event in run.attach()]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_everybody_who_watches_sees_the_whole_answer_whenever_they_came() -> None:
    script = Script()
    run = script.run()
    early = asyncio.create_task(watched(run))
    script.say("a")
    await settle()
    late = asyncio.create_task(watched(run))
    script.say("b")
    script.say(None)
    end = await run.wait()
    assert await early == [TextDelta("a"), TextDelta("b"), end]
    assert await late == [TextDelta("a"), TextDelta("b"), end]
    assert await watched(run) == [TextDelta("ab"), end]


async def test_leaving_does_not_stop_the_answer() -> None:
    script = Script()
    run = script.run()
    viewer = asyncio.create_task(watched(run))
    await settle()
    viewer.cancel()
    script.say("a")
    script.say(None)
    await run.wait()
    assert (run.text, script.ends) == ("a", [Finished("stop")])


async def test_stop_keeps_what_had_arrived_and_says_so() -> None:
    script = Script()
    run = script.run()
    script.say("half")
    await settle()
    assert await run.stop() == Finished("cancelled")
    assert (run.text, script.ends) == ("half", [Finished("cancelled")])


async def test_stop_twice_and_after_the_end_changes_nothing() -> None:
    script = Script()
    run = script.run()
    script.say(None)
    await run.wait()
    assert await run.stop() == await run.stop() == Finished("stop")


async def test_stop_before_the_first_step_still_stores_an_end() -> None:
    script = Script()
    run = script.run()
    await run.stop()
    assert script.ends == [Finished("cancelled")]


async def test_a_failure_is_the_last_event_and_is_stored() -> None:
    script = Script()
    run = script.run()
    script.say("a")
    script.say(ContextOverflow(needed=11, window=10))
    *_, last = await watched(run)
    assert isinstance(last, Failed)
    assert (last.code, script.ends) == ("context_length_exceeded", [last])


async def test_a_mistake_of_ours_is_logged_and_told_without_its_insides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script()
    run = script.run()
    script.say(RuntimeError("secret detail"))
    end = await run.wait()
    assert isinstance(end, Failed)
    assert "secret" not in end.message + end.hint
    assert "secret detail" in caplog.text


async def test_an_answer_that_cannot_be_stored_says_so() -> None:
    async def full_disk(_: End) -> End:
        raise StoreError("The disk is full.")

    script = Script()
    run = script.run(full_disk)
    script.say(None)
    end = await run.wait()
    assert end == Failed("store_error", "The disk is full.")


async def test_an_end_that_could_not_be_stored_is_stored_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rallychat.runs.TRY_AGAIN", 0)
    stored, attempts = asyncio.Event(), list[End]()

    async def full_at_first(end: End) -> End:
        attempts.append(end)
        if len(attempts) < 3:
            raise StoreError("The disk is full.")
        stored.set()
        return end

    async def save(_: list[Run]) -> list[str]:
        return []

    script, runs = Script(), Runs(save)
    run = runs.start(script.run(full_at_first))
    script.say(None)
    assert await run.wait() == Failed("store_error", "The disk is full.")
    await stored.wait()
    await runs.aclose()
    assert attempts == [Finished("stop")] * 3


async def test_a_mistake_of_ours_in_storing_what_grows_is_logged_and_it_is_stored_the_next_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rallychat.runs.SAVE_EVERY", 0)
    again, attempts = asyncio.Event(), list[int]()

    async def save(growing: list[Run]) -> list[str]:
        attempts.append(len(growing))
        if len(attempts) == 1:
            raise KeyError("a mistake")
        again.set()
        return []

    script, runs = Script(), Runs(save)
    runs.start(script.run())
    async with asyncio.timeout(30):
        await again.wait()
    await runs.aclose()
    assert "a mistake" in caplog.text


async def test_what_could_not_be_stored_is_tried_once_more_at_the_end() -> None:
    attempts: list[End] = []

    async def full_at_first(end: End) -> End:
        attempts.append(end)
        if len(attempts) == 1:
            raise StoreError("The disk is full.")
        return end

    async def save(_: list[Run]) -> list[str]:
        return []

    script, runs = Script(), Runs(save)
    run = runs.start(script.run(full_at_first))
    script.say(None)
    await run.wait()
    await settle()
    await runs.aclose()
    assert attempts == [Finished("stop")] * 2


async def test_what_grows_is_saved_together_until_it_ends() -> None:
    saved: list[list[str]] = []
    again = asyncio.Event()

    async def save(runs: list[Run]) -> list[str]:
        saved.append([run.text for run in runs])
        again.set()
        return []

    runs = Runs(save)
    scripts = [Script(), Script()]
    for script in scripts:
        runs.start(script.run())
        script.say("a")
    while saved[-1:] != [["a", "a"]]:
        again.clear()
        await again.wait()
    for script in scripts:
        script.say(None)
    await runs.aclose()
    assert runs.of_conversation("c") is None


async def test_the_end_of_the_service_interrupts_what_runs_and_waits_for_its_storage() -> None:
    async def save(_: list[Run]) -> list[str]:
        return []

    runs = Runs(save)
    script = Script()
    run = runs.start(script.run())
    script.say("half")
    await settle()
    await runs.aclose()
    assert script.ends == [Finished("interrupted")]
    assert runs.get(run.id).text == "half"


async def test_an_unknown_run_is_not_found() -> None:
    async def save(_: list[Run]) -> list[str]:
        return []

    with pytest.raises(NotFound):
        Runs(save).get("run_nope")


async def test_a_viewer_who_comes_late_hears_only_the_newest_queue_position() -> None:
    async def produce(emit: Emit) -> Finished:
        for position in (3, 2, 1):
            emit(Queued(position))
        return Finished("stop")

    script = Script()
    run = Run(produce, script.conclude)
    await run.wait()
    assert await watched(run) == [Queued(1), Finished("stop")]
