"""Background work and slots: it makes way at once, harms nobody's cache, and does not starve among itself."""

from __future__ import annotations

import asyncio
import time
from typing import Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.errors import Busy
from rallychat.identity import acting_as
from rallychat.pool import Crowded, How, Priority, Slot
from rallychat.pool.background import PASSED
from rallychat.pool.engine import SIP, SIPS, STEP, sip_after
from rallychat.pool.slots import LOOK, SlotQueue
from rallychat.pool.strain import ENOUGH


class Worker:
    """Takes a slot; background leaves as soon as it is wanted, a person when told to."""

    def __init__(
        self,
        queue: SlotQueue,
        ids: list[int],
        priority: Priority = Priority.CHAT,
        /,
        **how: Unpack[How],
    ) -> None:
        self.priority = priority
        self.slot: Slot | None = None
        self.done = False
        self.preempted = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._work(queue, ids, {**how, "priority": priority}))

    async def _work(self, queue: SlotQueue, ids: list[int], how: How) -> None:
        async with queue.slot(ids, **how) as slot:
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


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that nobody uses may be a batch's at once."""
    monkeypatch.setattr("rallychat.pool.affinity.UNUSED", 0.0)


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


@pytest.mark.parametrize("priority", [priority for priority in Priority if not priority.foreground], ids=str)
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


def measured(queue: SlotQueue, paces: dict[int, float]) -> None:
    """What a token takes was heard, by how many answers are made at a time."""
    for answers, seconds in paces.items():
        for _ in range(ENOUGH):
            queue._strain.said(answers, seconds)


async def test_a_token_that_waited_for_another_s_prompt_does_not_say_what_two_answers_cost_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, heard = ready(2), list[tuple[int, float]]()
    monkeypatch.setattr(queue._strain, "said", lambda *said: heard.append(said))
    one = Worker(queue, [1])
    await settle()
    assert one.slot is not None
    queue.begun(one.slot)
    queue.spoke(one.slot, 0.05)
    two = Worker(queue, [2])
    await settle()
    assert two.slot is not None
    queue.begun(two.slot)
    queue.spoke(one.slot, 0.64)  # the last step of that prompt
    queue.spoke(two.slot, 0.06)
    queue.spoke(one.slot, 0.07)
    await two.leave()
    queue.spoke(one.slot, 0.08)  # partly beside it
    queue.spoke(one.slot, 0.09)
    assert heard == [(1, 0.05), (2, 0.06), (2, 0.07), (1, 0.09)]
    await one.leave()


async def test_a_batch_goes_on_beside_people_as_far_as_that_slows_nobody() -> None:
    queue = ready(4)
    measured(queue, {1: 0.01, 2: 0.01, 3: 0.02})
    person = Worker(queue, [1])
    await settle()
    batch = [Worker(queue, [n], Priority.BATCH) for n in range(2, 5)]
    await settle()
    assert [work.slot is not None for work in batch] == [False, False, False]  # a first token is waited for
    assert person.slot is not None
    queue.begun(person.slot)
    await settle()
    assert [work.slot is not None for work in batch] == [True, False, False]
    measured(queue, {2: 0.02})
    queue.charge(person.slot, LOOK)
    await settle()
    assert (batch[0].preempted, batch[1].slot) == (True, None)
    await person.leave()
    for work in batch[1:]:
        await work.leave()


async def test_lines_beside_people_make_way_while_they_read_and_where_a_slot_is_short() -> None:
    queue = ready(3)
    measured(queue, {1: 0.01, 2: 0.01, 3: 0.01})
    first = Worker(queue, [1])
    await settle()
    assert first.slot is not None
    queue.begun(first.slot)
    said, reads = Worker(queue, [2], Priority.BATCH), Worker(queue, [3], Priority.BATCH)
    await settle()
    assert said.slot is not None
    queue.charge(said.slot, 5, said=5)
    second = Worker(queue, [4])
    await settle()
    assert (second.slot is not None, said.preempted, reads.preempted) == (True, False, True)
    third = Worker(queue, [5])
    await settle()
    assert (third.slot is not None, said.preempted) == (True, True)
    for person in (first, second, third):
        await person.leave()
    assert queue.idle


@pytest.mark.parametrize("unused", [False, True])
async def test_a_measurement_drives_no_conversation_out_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, unused: bool
) -> None:
    queue = ready(2)
    for number in range(2):
        await visit(queue, f"chat {number}", [number] * 10)
    if unused:
        monkeypatch.setattr("rallychat.pool.affinity.UNUSED", 0.0)
    work = Worker(queue, [9] * 10, Priority.TITLES, apart="only")
    await settle()
    if unused:
        assert work.slot is not None
        await work.leave()
    else:
        with pytest.raises(Crowded):
            await work.task


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


@pytest.mark.usefixtures("forgetful")
async def test_background_goes_by_priority() -> None:
    queue = ready(1)
    holder = Worker(queue, [])  # and leaves no cache to spare
    await settle()
    order = [Priority.BATCH, Priority.TITLES, Priority.WARMING, Priority.COMPACTION]
    waiting = [Worker(queue, [n], priority, session=str(n)) for n, priority in enumerate(order)]
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


async def test_one_slot_in_eight_prepares_for_later_at_a_time_for_who_was_seen_last() -> None:
    queue, now = ready(16), time.monotonic()
    work = [Worker(queue, [n], Priority.WARMING, session=str(n), since=now + n) for n in range(4)]
    await settle()
    assert [one.slot is not None for one in work] == [True, True, True, True]
    assert [one.preempted for one in work] == [True, True, False, False]
    first = Worker(queue, [9], Priority.TITLES, session="9", since=now + 9)
    await settle()
    assert first.slot is None
    await work[3].leave()
    await settle()
    assert first.slot is not None
    for one in (first, work[2]):
        await one.leave()


async def test_it_is_calm_when_nobody_is_served_or_waits() -> None:
    queue = ready(1)
    await queue.calm()
    first, second = Worker(queue, [1]), Worker(queue, [2])
    await settle()
    calm = asyncio.create_task(queue.calm())
    await first.leave()
    await settle()
    assert not calm.done()
    await second.leave()
    await calm
    work = Worker(queue, [3], Priority.WARMING)
    await settle()
    await queue.calm()
    await work.leave()


def test_where_a_step_takes_as_long_with_more_tokens_it_has_more() -> None:
    """On a GPU that is so up to about a thousand; 32 at a time took a hundred requests to warm a conversation."""
    size = SIP
    for _ in range(10):
        size = sip_after(size, 0.025)
    assert size == SIPS[1]


@given(st.lists(st.floats(0, 1, allow_nan=False)))
def test_steps_of_the_background_are_as_long_as_a_person_may_have_to_wait(rates: list[float]) -> None:
    size = SIP
    for seconds in rates:
        before, size = size, sip_after(size, seconds)
        assert SIPS[0] <= size <= SIPS[1]
        assert size >= before or seconds > STEP
        assert size <= before or seconds * 2 < STEP


@pytest.mark.usefixtures("forgetful")
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


@pytest.mark.usefixtures("forgetful")
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


async def test_a_conversation_that_was_opened_is_warmed_where_nobody_was_answered_since() -> None:
    queue = ready(2)
    old = await visit(queue, "a", [1] * 10)
    opened = time.monotonic()
    await visit(queue, "b", [2] * 10)
    work = Worker(queue, [3] * 10, Priority.WARMING, session="long", since=opened)
    await settle()
    assert work.slot is not None
    assert work.slot.index == old
    await work.leave()
    await visit(queue, "a", [1] * 12)  # it takes the place of the opened one, which was used before b's
    assert [slot.session for slot in queue.slots] == ["a", "b"]
    with pytest.raises(Crowded):
        await Worker(queue, [3] * 10, Priority.WARMING, session="long", since=opened).task


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


async def test_a_batch_waits_rather_than_take_the_cache_of_a_conversation_and_has_it_once_it_is_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = ready(2)
    await visit(queue, "a", [1] * 10)
    await visit(queue, "b", [2] * 10)
    monkeypatch.setattr("rallychat.pool.affinity.UNUSED", 1.0)
    batch = Worker(queue, [3] * 10, Priority.BATCH)
    title = Worker(queue, [2] * 10 + [9], Priority.TITLES, session="b")
    await settle()
    assert batch.slot is None
    assert title.slot is not None  # who comes later is not held up by it
    await title.leave()
    async with asyncio.timeout(60):
        while batch.slot is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await batch.leave()
    assert queue.idle


async def test_a_batch_takes_its_own_slot_a_stale_one_or_an_empty_one_at_once() -> None:
    queue = ready(3)
    own = await visit(queue, "a", [1] * 10)
    first = Worker(queue, [3] * 10, Priority.BATCH)
    await settle()
    assert first.slot is not None
    assert first.slot.index != own
    await first.leave()
    both = [Worker(queue, [n] * 10, Priority.BATCH) for n in (4, 5, 6)]
    await settle()
    assert [work.slot is not None for work in both] == [True, True, False]
    queue.slots[own].stale = True
    await both[0].leave()
    await settle()
    assert both[2].slot is not None
    for work in both[1:]:
        await work.leave()


async def test_a_stranger_waits_a_step_for_a_batch_s_slot_and_spares_a_conversation_s_cache() -> None:
    queue = ready(2)
    own = await visit(queue, "a", [1] * 10)
    batch = Worker(queue, [3] * 10, Priority.BATCH)
    await settle()
    assert await visit(queue, "stranger", [9] * 10) != own
    assert batch.preempted
    assert queue.slots[own].ids == [1] * 10


async def test_an_answer_nobody_watches_goes_on_beside_people_and_makes_way_for_who_finds_no_slot() -> None:
    queue = ready(2)
    patient = [Worker(queue, [n], Priority.PATIENT, session=f"p{n}") for n in range(2)]
    await settle()
    assert patient[0].slot is not None
    person = Worker(queue, [7], session="a")
    await settle()
    assert person.slot is not None
    assert [work.preempted for work in patient] == [False, True]  # the newer one
    assert queue.others("a")
    await person.leave()
    for work in patient:
        await work.leave()
    assert queue.idle


async def test_an_answer_nobody_watches_begins_when_no_person_waits_for_a_first_token() -> None:
    queue = ready(3)
    person = Worker(queue, [7], session="a")
    await settle()
    patient = Worker(queue, [1], Priority.PATIENT)
    batch = Worker(queue, [2], Priority.BATCH)
    await settle()
    assert person.slot is not None
    assert patient.slot is None
    queue.begun(person.slot)
    await settle()
    assert (patient.slot is not None, batch.slot) == (True, None)
    assert queue.pressed  # its own first token is waited for, too
    await person.leave()
    await settle()
    assert batch.slot is not None
    await patient.leave()
    await batch.leave()


async def test_what_is_said_to_nobody_s_eyes_counts_for_its_user_s_share() -> None:
    queue = ready(1)
    holder = Worker(queue, [1])
    await settle()
    with acting_as("a"):
        patient = Worker(queue, [2], Priority.PATIENT)
    await holder.leave()
    await settle()
    assert patient.slot is not None
    with acting_as("b"):
        waiting = Worker(queue, [3], Priority.PATIENT)
    queue.charge(patient.slot, 300, said=300)
    with acting_as("a"):
        more = Worker(queue, [4], Priority.PATIENT)
    await patient.leave()
    await settle()
    assert (waiting.slot is not None, more.slot) == (True, None)
    await waiting.leave()
    await more.leave()


@given(st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 4)), min_size=1, max_size=25))
async def test_whoever_comes_everybody_is_served_and_people_before_all_others(
    asked: list[tuple[Priority, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rallychat.pool.affinity.UNUSED", 0.0)
        await _whoever_comes(asked)


async def _whoever_comes(asked: list[tuple[Priority, int]]) -> None:
    queue = ready(2)
    workers: list[Worker] = []
    for priority, session in asked:
        workers.append(Worker(queue, [session] * 8, priority, session=f"s{session}"))
        await settle()
        people = [w for w in workers if w.priority is Priority.CHAT and not w.done]
        if people:
            assert all(w.slot is None or w.done for w in workers if not w.priority.foreground)
            served = sum(w.slot is not None for w in people)
            assert served == min(len(people), 2)
    until = time.monotonic() + 60
    while not all(worker.task.done() for worker in workers):
        assert time.monotonic() < until
        for worker in workers:
            if worker.slot is not None and not worker.done:
                await worker.leave()
        await settle()
    for worker in workers:
        assert worker.task.exception() is None or isinstance(worker.task.exception(), Crowded)
    assert queue.idle
