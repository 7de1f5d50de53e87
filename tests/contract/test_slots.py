"""What every engine does with its slots: reuse, concurrency, cancelling, refusing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from rallychat.engines.protocol import CompletionRequest, Done, EngineEvent, Prefill, Tokens
from tests.contract.rig import SLOTS, WINDOW, Rig


async def test_each_slot_can_be_warmed_and_then_reuses_its_prefix(rig: Rig) -> None:
    prompt = await rig.chat("Remember: " + "the parrot is green, " * 8)
    for slot in range(SLOTS):
        warmed = await rig.answer(prompt, slot=slot, max_tokens=0)
        assert (warmed.text, warmed.done.completion_tokens) == ("", 0)
    longer = prompt + await rig.text("It is")
    found = [(await rig.answer(longer, slot=slot, max_tokens=2)).done for slot in range(SLOTS)]
    assert [done.cached_tokens >= len(prompt) - 1 for done in found] == [True] * SLOTS


async def test_the_next_turn_reuses_the_answer_too(rig: Rig) -> None:
    prompt = await rig.chat("Say something about rivers and lakes.")
    first = await rig.answer(prompt, slot=1, ignore_eos=True)
    second = await rig.answer(prompt + first.ids + await rig.chat("And now?"), slot=1, max_tokens=2)
    assert second.done.cached_tokens >= len(prompt) + len(first.ids) - 1


async def test_without_a_wish_the_slot_that_holds_the_prefix_is_chosen(rig: Rig) -> None:
    prompt = await rig.chat("An unmistakable beginning: zebra crossing at noon.")
    await rig.answer(prompt, slot=2, max_tokens=0)
    assert (await rig.answer(prompt, max_tokens=1)).done.cached_tokens == len(prompt) - 1


async def test_a_prefix_shared_in_part_is_reused_in_part(rig: Rig) -> None:
    prompt = await rig.long(300)
    await rig.answer(prompt, slot=0, max_tokens=0)
    other = prompt[:200] + await rig.text("something else entirely")
    assert 190 <= (await rig.answer(other, slot=0, max_tokens=1)).done.cached_tokens <= 200


async def test_what_is_held_under_another_salt_is_not_reused_and_changes_no_answer(rig: Rig) -> None:
    prompt = await rig.chat("Whose secret is this: an otter at dawn?")
    first = await rig.answer(prompt, slot=0, cache_salt="hers", max_tokens=8)
    other = await rig.answer(prompt, slot=0, cache_salt="his", max_tokens=8)
    again = await rig.answer(prompt, slot=0, cache_salt="his", max_tokens=8)
    assert (other.done.cached_tokens, again.done.cached_tokens >= len(prompt) - 1) == (0, True)
    assert first.ids == other.ids == again.ids


async def test_prefill_is_reported_from_what_is_cached_to_the_whole(rig: Rig) -> None:
    prompt = await rig.long(450)
    await rig.answer(prompt[:100], slot=0, max_tokens=0)
    progress = (await rig.answer(prompt, slot=0, max_tokens=1)).prefills
    assert {event.total for event in progress} == {450}
    assert [event.processed for event in progress] == sorted(event.processed for event in progress)
    assert progress[-1].processed == 450


async def test_all_slots_answer_at_the_same_time(rig: Rig) -> None:
    prompt = await rig.chat("Count from one to one hundred.")
    answering: set[int] = set()

    async def watch(slot: int) -> None:
        async with rig.begun(prompt, slot=slot, ignore_eos=True, max_tokens=WINDOW) as stream:
            async for event in stream:
                assert not isinstance(event, Done), f"slot {slot} ended while only {answering} had begun"
                if isinstance(event, Tokens):
                    answering.add(slot)
                if len(answering) == SLOTS:
                    return

    await asyncio.gather(*(watch(slot) for slot in range(SLOTS)))


async def test_more_than_there_are_slots_for_waits_until_somebody_has_left(rig: Rig) -> None:
    prompt = await rig.chat("Talk without end.")
    for _ in range(20):  # the answers of a small model may end before this process has its next turn
        async with AsyncExitStack() as stack:
            for slot in range(SLOTS):
                talk = rig.begun(prompt, slot=slot, ignore_eos=True, max_tokens=WINDOW)
                await stack.enter_async_context(talk)
            late = asyncio.create_task(rig.answer(prompt, max_tokens=1))
            full = (await rig.client.health())["free_slots"] == 0
        assert (await late).done.completion_tokens == 1
        if full:
            return
    pytest.fail("there always was a free slot")


async def test_leaving_an_answer_frees_its_slot(rig: Rig) -> None:
    prompt = await rig.chat("Talk without end, again.")
    async with rig.begun(prompt, slot=3, ignore_eos=True, max_tokens=WINDOW) as stream:
        taken = [event async for event in _few(stream, 4)]
    assert any(isinstance(event, Tokens) for event in taken)
    assert (await rig.answer(prompt, slot=3, max_tokens=1)).done.completion_tokens == 1


async def test_leaving_within_a_long_prompt_abandons_the_rest_of_it(rig: Rig) -> None:
    prompt = await rig.long(WINDOW - 10)
    for _ in range(20):  # a small model may have read all of it before it hears that nobody waits any more
        await rig.answer(await rig.text("something else"), slot=1, max_tokens=0)
        async with rig.begun(prompt, slot=1) as stream:
            assert isinstance(await anext(stream), Prefill)
        async with rig.begun(prompt, slot=1) as stream:
            again = await anext(stream)
        assert isinstance(again, Prefill)
        if again.cached < len(prompt) - 1:
            return
    pytest.fail("each time all of the prompt was read")


async def test_two_hundred_vanishing_clients_leave_no_busy_slot(rig: Rig) -> None:
    prompt = await rig.chat("Talk to people who leave.")

    async def vanish() -> None:
        request = CompletionRequest(prompt=prompt, max_tokens=WINDOW, temperature=0, ignore_eos=True)
        async with aclosing(rig.client.generate(request)) as stream:
            async for _ in _few(stream, 3):
                pass

    for _ in range(25):
        await asyncio.gather(*(vanish() for _ in range(8)))
    answers = await asyncio.gather(*(rig.answer(prompt, slot=slot, max_tokens=3) for slot in range(SLOTS)))
    assert len(answers) == SLOTS
    assert (await rig.client.health())["free_slots"] == SLOTS


async def _few(stream: AsyncIterator[EngineEvent], count: int) -> AsyncIterator[EngineEvent]:
    async for event in stream:
        yield event
        count -= 1
        if not count:
            return
