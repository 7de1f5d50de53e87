"""Who gets which slot: order, affinity, refusal, and nothing leaked by those who leave."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.engines.slots import shared_prefix
from rallychat.errors import Busy, EngineUnavailable, Late
from rallychat.messages import Queued
from rallychat.pool import Priority, Slot
from rallychat.pool.slots import SlotQueue


def ignore(_: object) -> None:
    """Nobody listens."""


async def settle() -> None:
    """Lets every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Visitor:
    """Takes a slot and keeps it until told to leave."""

    def __init__(
        self,
        queue: SlotQueue,
        ids: list[int] | None = None,
        priority: Priority = Priority.CHAT,
        *,
        until: float | None = None,
    ) -> None:
        self.positions: list[int] = []
        self.slot: Slot | None = None
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(queue, ids or [], priority, until))

    async def _visit(self, queue: SlotQueue, ids: list[int], priority: Priority, until: float | None) -> None:
        async with queue.slot(ids, notify=self._hear, priority=priority, until=until) as slot:
            self.slot = slot
            slot.ids = ids
            await self._leave.wait()

    def _hear(self, queued: Queued) -> None:
        self.positions.append(queued.position)

    async def leave(self) -> None:
        self._leave.set()
        await self.task


def ready(slots: int, *, limit: int = 100) -> SlotQueue:
    queue = SlotQueue(slots, limit=limit)
    queue.resume()
    return queue


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_the_common_prefix_is_the_longest_one(a: list[int], b: list[int]) -> None:
    size = shared_prefix(a, b)
    assert a[:size] == b[:size]
    assert size == min(len(a), len(b)) or a[size] != b[size]


async def test_those_who_wait_are_served_in_order_and_told_their_position() -> None:
    queue = ready(1)
    first, second, third = Visitor(queue), Visitor(queue), Visitor(queue)
    await settle()
    assert (first.slot is not None, second.positions, third.positions) == (True, [1], [2])
    await first.leave()
    await settle()
    assert (second.slot is not None, third.slot, third.positions) == (True, None, [2, 1])
    await second.leave()
    await third.leave()
    assert queue.idle


async def test_a_person_goes_before_background_work_that_came_earlier() -> None:
    queue = ready(1)
    holder, background = Visitor(queue), Visitor(queue, priority=Priority.COMPACTION)
    await settle()
    person = Visitor(queue)
    await settle()
    assert (person.positions, background.positions) == ([1], [1, 2])
    await holder.leave()
    await person.leave()
    await background.leave()


async def test_a_conversation_returns_to_the_slot_that_holds_its_prompt() -> None:
    queue = ready(3)
    visitors = [Visitor(queue, [n] * 10) for n in range(3)]
    await settle()
    homes = [visitor.slot and visitor.slot.index for visitor in visitors]
    for visitor in visitors:
        await visitor.leave()
    for n in (2, 0, 1):
        again = Visitor(queue, [n] * 12)
        await settle()
        assert again.slot is not None
        assert again.slot.index == homes[n]
        await again.leave()


async def test_a_new_conversation_takes_an_empty_slot_before_another_s_cache() -> None:
    queue = ready(2)
    first = Visitor(queue, [1] * 10)
    await settle()
    await first.leave()
    second = Visitor(queue, [2] * 10)
    await settle()
    assert first.slot is not None
    assert second.slot is not None
    assert second.slot.index != first.slot.index
    await second.leave()


async def test_strangers_get_neighbouring_slots_which_compute_together() -> None:
    queue = ready(8)
    first = [Visitor(queue, [n]) for n in range(8)]
    await settle()
    for visitor in first:
        await visitor.leave()
    strangers = [Visitor(queue, [100 + n]) for n in range(3)]
    await settle()
    taken = sorted(visitor.slot.index for visitor in strangers if visitor.slot)
    assert taken == list(range(taken[0], taken[0] + 3))
    for visitor in strangers:
        await visitor.leave()


async def test_a_stranger_spares_the_caches_that_were_used_last() -> None:
    queue = ready(4)
    visitors = [Visitor(queue, [n]) for n in range(4)]
    await settle()
    for visitor in reversed(visitors):  # slot 0 is used last
        await visitor.leave()
    stranger = Visitor(queue, [100])
    await settle()
    assert stranger.slot is not None
    assert stranger.slot.index != 0
    await stranger.leave()


async def test_a_full_queue_refuses_with_the_seconds_to_wait() -> None:
    queue = ready(1, limit=1)
    holder, waiting = Visitor(queue), Visitor(queue)
    await settle()
    with pytest.raises(Busy) as refused:
        async with queue.slot([], notify=ignore):
            pass
    assert refused.value.retry_after >= 1
    await holder.leave()
    await waiting.leave()


async def test_no_queue_at_all_still_serves_whoever_finds_a_free_slot() -> None:
    queue = ready(1, limit=0)
    visitor = Visitor(queue)
    await settle()
    assert visitor.slot is not None
    await visitor.leave()


async def test_who_gives_up_while_waiting_leaves_nothing_behind() -> None:
    queue = ready(1)
    holder, quitter, last = Visitor(queue), Visitor(queue), Visitor(queue)
    await settle()
    quitter.task.cancel()
    await settle()
    assert (queue.waiting, last.positions) == (1, [2, 1])
    await holder.leave()
    await last.leave()
    assert queue.idle


async def test_who_gives_up_takes_no_place_in_a_full_queue_from_that_very_step_on() -> None:
    queue = ready(1, limit=1)
    holder, quitter = Visitor(queue), Visitor(queue)
    await settle()
    quitter.task.cancel()
    leaving = asyncio.create_task(holder.leave())
    async with asyncio.timeout(30), queue.slot([], notify=ignore):
        await leaving
    assert queue.idle


async def test_who_gives_up_in_the_very_step_of_being_granted_gives_the_slot_back() -> None:
    queue = ready(1)
    holder, quitter = Visitor(queue), Visitor(queue)
    await settle()
    holder._leave.set()
    await asyncio.sleep(0)
    quitter.task.cancel()
    await settle()
    assert queue.idle


async def test_nobody_is_served_while_the_engine_is_away_and_caches_are_forgotten_when_it_returns() -> None:
    queue = ready(1)
    holder = Visitor(queue, [1, 2, 3])
    await settle()
    queue.pause()
    waiting = Visitor(queue)
    await holder.leave()
    await settle()
    assert waiting.slot is None
    queue.resume()
    await settle()
    assert waiting.slot is not None
    await waiting.leave()


async def test_when_the_engine_does_not_come_back_those_who_wait_are_told() -> None:
    queue = SlotQueue(1, limit=5)
    waiting = Visitor(queue)
    await settle()
    queue.refuse(EngineUnavailable("gone"))
    with pytest.raises(EngineUnavailable, match="gone"):
        await waiting.task
    assert queue.idle


async def test_many_visitors_of_whom_half_give_up_never_exceed_the_slots() -> None:
    queue = ready(3)
    visitors = [Visitor(queue, [n]) for n in range(60)]
    await settle()
    for visitor in visitors[::2]:
        visitor.task.cancel()
        await settle()
        assert queue.busy <= 3
    await asyncio.gather(*(visitor.leave() for visitor in visitors[1::2]))
    assert queue.idle


# --- until when ---------------------------------------------------------------------------------------------


async def test_who_gives_up_leaves_the_line_and_the_others_move_up() -> None:
    queue = ready(1)
    holder, hurried, patient = Visitor(queue), Visitor(queue, until=time.monotonic() + 2), Visitor(queue)
    await settle()
    assert (hurried.positions, patient.positions) == ([1], [2])
    with pytest.raises(Late, match=r"did not come within .* s, which is its timeout"):
        await hurried.task
    assert (queue.waiting, patient.positions) == (1, [2, 1])
    await holder.leave()
    await patient.leave()
    assert queue.idle


async def test_whose_turn_has_come_in_time_keeps_the_slot_as_long_as_it_takes() -> None:
    queue = ready(1)
    holder, hurried = Visitor(queue), Visitor(queue, until=time.monotonic() + 30)
    await settle()
    await holder.leave()
    await settle()
    assert hurried.slot is not None
    await hurried.leave()


async def test_what_cannot_come_in_time_by_what_was_measured_is_refused_at_once() -> None:
    queue = ready(1)
    for _ in range(50):  # until an answer takes next to nothing
        await Visitor(queue).leave()
    holder, patient = Visitor(queue), Visitor(queue)
    soon = Visitor(queue, until=time.monotonic() + 60)
    late = Visitor(queue, until=time.monotonic() - 1)
    with pytest.raises(Late, match="cannot come") as refused:
        await late.task
    assert refused.value.retry_after >= 1
    assert (late.positions, soon.positions, queue.waiting) == ([], [2], 2)
    for each in (holder, patient, soon):
        await each.leave()
    assert queue.idle


async def test_an_answer_that_was_cut_off_or_paused_does_not_say_how_long_answers_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits was told of a second behind answers of twenty, or of minutes behind an engine that had hung."""
    queue, heard = SlotQueue(1, limit=4), list[int]()
    queue.resume()
    monkeypatch.setattr(queue._pace, "answered", lambda _, tokens: heard.append(tokens))

    async def dies() -> None:
        async with queue.slot([1]) as slot:
            queue.charge(slot, 3, said=3)
            raise EngineUnavailable("it is gone")

    with pytest.raises(EngineUnavailable):
        await dies()
    async with queue.slot([1], again=True) as slot:
        queue.charge(slot, 2, said=2)
    async with queue.slot([1]) as slot:
        queue.charge(slot, 5, said=5)
    assert heard == [5]


async def test_nobody_is_refused_by_an_estimate_before_anything_was_measured() -> None:
    queue = ready(1)
    holder = Visitor(queue)
    hurried = Visitor(queue, until=time.monotonic() + 4)  # assumed are 5 s
    await settle()
    assert queue.waiting == 1
    await holder.leave()
    await hurried.leave()


async def test_who_is_cancelled_while_a_deadline_runs_leaves_nothing_behind() -> None:
    queue = ready(1)
    holder, hurried = Visitor(queue), Visitor(queue, until=time.monotonic() + 30)
    await settle()
    hurried.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hurried.task
    assert queue.waiting == 0
    await holder.leave()
    assert queue.idle
