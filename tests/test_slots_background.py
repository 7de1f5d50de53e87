"""Background work and slots: it makes way at once, harms nobody's cache, and does not starve among itself."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.errors import Busy
from rallychat.pool.slots import PASSED, Apart, Crowded, Priority, Slot, SlotQueue


class Worker:
    """Takes a slot; background leaves as soon as it is wanted, a person when told to."""

    def __init__(
        self,
        queue: SlotQueue,
        ids: list[int],
        priority: Priority = Priority.CHAT,
        *,
        session: str = "",
        apart: Apart = "no",
    ) -> None:
        self.priority = priority
        self.slot: Slot | None = None
        self.done = False
        self.preempted = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._work(queue, ids, session, apart))

    async def _work(self, queue: SlotQueue, ids: list[int], session: str, apart: Apart) -> None:
        asked = queue.slot(ids, priority=self.priority, session=session, apart=apart)
        async with asked as slot:
            self.slot = slot
            slot.ids = ids
            leave = asyncio.create_task(self._leave.wait())
            wanted = asyncio.create_task(slot.wanted.wait())
            events = {leave} if self.priority is Priority.CHAT else {leave, wanted}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            self.preempted = slot.wanted.is_set()
            leave.cancel()
            wanted.cancel()
        self.done = True

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def ready(slots: int, *, limit: int = 100) -> SlotQueue:
    queue = SlotQueue(slots, limit=limit)
    queue.resume()
    return queue


async def visit(queue: SlotQueue, session: str, ids: list[int]) -> int:
    """A person of `session` was answered; returns the slot."""
    worker = Worker(queue, ids, session=session)
    await settle()
    assert worker.slot is not None
    await worker.leave()
    return worker.slot.index


@pytest.mark.parametrize(
    "priority", [priority for priority in Priority if priority is not Priority.CHAT], ids=str
)
async def test_background_leaves_at_once_when_a_person_comes_though_a_slot_is_free(
    priority: Priority,
) -> None:
    queue = ready(2)
    work = Worker(queue, [1], priority)
    await settle()
    person = Worker(queue, [2])
    await settle()
    assert (work.preempted, work.done) == (True, True)
    assert person.slot is not None
    await person.leave()


async def test_background_waits_as_long_as_a_person_is_answered_though_a_slot_is_free() -> None:
    queue = ready(2)
    person = Worker(queue, [1])
    await settle()
    work = Worker(queue, [2], Priority.WARMING)
    await settle()
    assert work.slot is None
    await person.leave()
    await settle()
    assert work.slot is not None
    await work.leave()


async def test_a_person_whose_own_slot_is_just_being_left_waits_for_it_and_harms_no_other() -> None:
    queue = ready(2)
    own = await visit(queue, "a", [1] * 10)
    other = await visit(queue, "b", [2] * 10)
    title = Worker(queue, [1] * 10 + [9], Priority.TITLES, session="a")
    await settle()
    assert title.slot is not None
    assert title.slot.index == own
    person = Worker(queue, [1] * 12, session="a")
    await settle()
    assert person.slot is not None
    assert (person.slot.index, title.preempted) == (own, True)
    assert other != own
    await person.leave()


async def test_background_goes_by_priority() -> None:
    queue = ready(1)
    holder = Worker(queue, [1])
    await settle()
    order = [Priority.BATCH, Priority.TITLES, Priority.WARMING, Priority.COMPACTION]
    waiting = [Worker(queue, [n], priority) for n, priority in enumerate(order)]
    await settle()
    await holder.leave()
    served: list[Priority] = []
    while len(served) < len(order):
        await settle()
        (current,) = (work for work in waiting if work.slot is not None and not work.done)
        served.append(current.priority)
        await current.leave()
    assert served == sorted(order)


async def test_a_batch_that_fills_all_slots_makes_way_for_warming_by_one_slot() -> None:
    queue = ready(3)
    batch = [Worker(queue, [n], Priority.BATCH) for n in range(3)]
    await settle()
    warming = Worker(queue, [9], Priority.WARMING)
    await settle()
    assert warming.slot is not None
    assert [work.preempted for work in batch].count(True) == 1
    for work in (*batch, warming):
        await work.leave()


async def test_background_is_not_starved_by_other_background() -> None:
    queue = ready(1)
    first = Worker(queue, [0], Priority.WARMING)
    batch = Worker(queue, [1], Priority.BATCH)
    await settle()
    for _ in range(PASSED):
        following = Worker(queue, [2], Priority.WARMING)
        await settle()
        assert batch.slot is None
        await first.leave()
        first = following
    late = Worker(queue, [3], Priority.WARMING)
    await settle()
    await first.leave()
    await settle()
    assert batch.slot is not None
    for work in (batch, late):
        await work.leave()


async def test_background_never_counts_against_the_queue_of_people() -> None:
    queue = ready(1, limit=1)
    holder = Worker(queue, [1])
    await settle()
    work = Worker(queue, [2], Priority.BATCH)
    waiting = Worker(queue, [3])
    await settle()
    assert not waiting.task.done()
    with pytest.raises(Busy, match="1 requests"):
        async with queue.slot([4]):
            pass
    await holder.leave()
    await waiting.leave()
    await work.leave()


async def test_work_that_stays_apart_spares_its_conversation_s_slot_and_those_used_later() -> None:
    queue = ready(3)
    stale = await visit(queue, "old", [7] * 10)
    own = await visit(queue, "a", [1] * 10)
    await visit(queue, "b", [2] * 10)
    work = Worker(queue, [3] * 10, Priority.COMPACTION, session="a", apart="rather")
    await settle()
    assert work.slot is not None
    assert work.slot.index == stale != own
    await work.leave()


async def test_where_every_other_cache_is_dearer_the_own_slot_is_used_or_none() -> None:
    queue = ready(2)
    own = await visit(queue, "a", [1] * 10)
    await visit(queue, "b", [2] * 10)
    rather = Worker(queue, [3] * 10, Priority.COMPACTION, session="a", apart="rather")
    await settle()
    assert rather.slot is not None
    assert rather.slot.index == own
    await rather.leave()
    with pytest.raises(Crowded):
        await Worker(queue, [3] * 10, Priority.TITLES, session="a", apart="only").task


async def test_a_swap_frees_the_old_slot_for_a_stranger() -> None:
    queue = ready(3)
    old = await visit(queue, "a", [1] * 10)
    await visit(queue, "b", [2] * 10)
    work = Worker(queue, [3] * 10, Priority.COMPACTION, session="a", apart="rather")
    await settle()
    assert work.slot is not None
    await work.leave()
    queue.settle("a", work.slot)
    assert await visit(queue, "stranger", [9] * 10) == old


async def test_what_was_asked_behind_a_short_prompt_does_not_drive_its_conversation_away() -> None:
    queue = ready(2)
    own = await visit(queue, "a", [1] * 5)
    title = Worker(queue, [1] * 5 + [9] * 20, Priority.TITLES, session="a")
    await settle()
    await title.leave()
    assert await visit(queue, "a", [1] * 7) == own


async def test_an_open_conversation_is_spared_as_if_it_had_just_been_used() -> None:
    queue = ready(2)
    opened = await visit(queue, "a", [1] * 10)
    await visit(queue, "b", [2] * 10)
    queue.touch("a")
    assert await visit(queue, "stranger", [9] * 10) != opened


@given(st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 4)), min_size=1, max_size=25))
async def test_whoever_comes_everybody_is_served_and_people_before_all_others(
    asked: list[tuple[Priority, int]],
) -> None:
    queue = ready(2)
    workers: list[Worker] = []
    for priority, session in asked:
        workers.append(Worker(queue, [session] * 8, priority, session=f"s{session}"))
        await settle()
        people = [w for w in workers if w.priority is Priority.CHAT and not w.done]
        if people:
            assert all(w.slot is None or w.done for w in workers if w.priority is not Priority.CHAT)
    until = time.monotonic() + 5
    while not all(worker.task.done() for worker in workers):
        assert time.monotonic() < until
        for worker in workers:
            if worker.slot is not None and not worker.done:
                await worker.leave()
        await settle()
    for worker in workers:
        assert worker.task.exception() is None or isinstance(worker.task.exception(), Crowded)
    assert queue.idle
