"""Turns by user: one share each, nobody starves, nobody saves up, and what is given up leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.bench.fair import jain
from rallychat.errors import Busy, Full
from rallychat.identity import acting_as
from rallychat.messages import Queued
from rallychat.pool import How, Preempted, Priority, Slot
from rallychat.pool.affinity import UNUSED, Asked
from rallychat.pool.fairness import DEBT, QUANTUM, SLICE, Claim, Shares, order, to_pause
from rallychat.pool.people import THOUGHT, spared
from rallychat.pool.slots import LOOK, SlotQueue
from rallychat.texts import place_in_line


class Guest:
    """A user's request: keeps its slot until told to leave, or until it has to make way, and comes back then."""

    def __init__(
        self, queue: SlotQueue, user: str, session: str = "", *, ids: list[int] | None = None
    ) -> None:
        self.user = user
        self.ids = ids or []
        self.told: list[Queued] = []
        self.slot: Slot | None = None
        self.paused = 0
        self._leave = asyncio.Event()
        with acting_as(user):
            self.task = asyncio.create_task(self._visit(queue, session))

    async def _visit(self, queue: SlotQueue, session: str) -> None:
        since = asyncio.get_running_loop().time()
        while True:
            try:
                how = How(notify=self.told.append, session=session, since=since, again=self.paused > 0)
                async with queue.slot([1], **how) as slot:
                    self.slot, slot.ids = slot, self.ids
                    leave, wanted = (asyncio.ensure_future(e.wait()) for e in (self._leave, slot.wanted))
                    try:
                        await asyncio.wait({leave, wanted}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        leave.cancel()
                        wanted.cancel()
                        self.slot = None
                    if self._leave.is_set():
                        return
                    raise Preempted
            except Preempted:
                self.paused += 1

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


def ready(slots: int, *, limit: int = 100) -> SlotQueue:
    queue = SlotQueue(slots, limit=limit)
    queue.resume()
    return queue


async def gone(*guests: Guest) -> None:
    for guest in guests:
        guest.task.cancel()
    await asyncio.gather(*(guest.task for guest in guests), return_exceptions=True)


async def test_a_flood_makes_way_for_another_at_once_and_goes_on_where_it_was() -> None:
    queue = ready(4)
    flood = [Guest(queue, "a") for _ in range(50)]
    await settle()
    other = Guest(queue, "b")
    await settle()
    assert other.slot is not None
    assert sum(guest.slot is not None for guest in flood) == 3
    assert (queue.pauses, sum(guest.paused for guest in flood)) == (1, 1)
    await other.leave()
    await settle()
    assert all(guest.slot is not None for guest in flood[:4])
    await gone(*flood)
    assert queue.idle


async def thinking(queue: SlotQueue, *users: str) -> None:
    """Each of them was answered just now, and reads."""
    guests = [Guest(queue, user, ids=[n + 2] * 9) for n, user in enumerate(users)]
    await settle()
    for guest in guests:
        await guest.leave()


async def test_a_flood_leaves_the_caches_of_those_who_think_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = ready(4)
    await thinking(queue, "a", "b")
    flood = [Guest(queue, "c") for _ in range(5)]
    await settle()
    assert {slot.user for slot in queue.slots if slot.busy} == {"c"}
    assert sum(guest.slot is not None for guest in flood) == 2  # the empty ones
    monkeypatch.setattr("rallychat.pool.affinity.UNUSED", 0.0)
    await flood[0].leave()
    await settle()
    assert sum(guest.slot is not None for guest in flood) == 4
    await gone(*flood)
    assert queue.idle


@pytest.mark.parametrize(("session", "waits"), [("a second chat", THOUGHT), ("", UNUSED)])
async def test_whoever_has_a_share_waits_for_the_cache_of_another_no_longer_than_that_one_may_think(
    monkeypatch: pytest.MonkeyPatch, session: str, waits: float
) -> None:
    queue = ready(2)
    await thinking(queue, "a")
    mine = Guest(queue, "b", session="a chat")
    more = Guest(queue, "b", session=session)
    await settle()
    assert (mine.slot is not None, more.slot, more.told[-1].position) == (True, None, 1)
    asked = Asked([], session=session, user="b")
    left = spared(asked, [slot for slot in queue.slots if not slot.busy], queue.slots, [])
    assert list(left.values()) == [pytest.approx(waits, abs=1.0)]
    await mine.leave()  # its own slot is free, and so is its share
    await settle()
    assert more.slot is not None
    await gone(more)
    assert queue.idle


async def test_a_slot_that_is_another_s_for_a_while_lets_nobody_into_a_full_line() -> None:
    queue = ready(2, limit=1)
    await thinking(queue, "a")
    flood = [Guest(queue, "b") for _ in range(3)]
    await settle()
    assert [guest.task.done() for guest in flood] == [False, False, True]
    with pytest.raises(Busy):
        await flood[2].task
    other = Guest(queue, "a")
    await settle()
    assert other.slot is not None
    await gone(other, *flood)


async def test_two_floods_have_half_of_the_slots_each() -> None:
    queue = ready(4)
    one = [Guest(queue, "a") for _ in range(10)]
    await settle()
    two = [Guest(queue, "b") for _ in range(10)]
    await settle()
    held = [sum(guest.slot is not None for guest in guests) for guests in (one, two)]
    assert held == [2, 2]
    await gone(*one, *two)
    assert queue.idle


async def test_ten_tabs_have_one_share() -> None:
    queue = ready(1)
    holder = Guest(queue, "c")
    await settle()
    tabs = [Guest(queue, "a", session=f"tab {n}") for n in range(10)]
    single = Guest(queue, "b", session="mine")
    await settle()
    assert single.told[-1].position == 2
    await holder.leave()
    await tabs[0].leave()
    await settle()
    assert single.slot is not None
    await gone(single, *tabs)


async def test_a_conversation_goes_before_the_same_user_s_requests_without_one() -> None:
    queue = ready(2)
    script = [Guest(queue, "a") for _ in range(6)]
    await settle()
    chat = Guest(queue, "a", session="chat")
    await settle()
    assert chat.slot is not None
    await gone(chat, *script)
    assert queue.idle


async def test_who_was_served_much_makes_way_for_who_waits_with_nothing() -> None:
    queue = ready(1)
    first = Guest(queue, "a")
    await settle()
    second = Guest(queue, "b")
    await settle()
    assert second.slot is None
    for _ in range(int(QUANTUM) // LOOK + 2):
        if first.slot is not None:
            queue.charge(first.slot, LOOK, said=LOOK)
        await settle()
    assert (first.paused, second.slot is not None) == (1, True)
    assert first.told[-1].position == 1
    await gone(first, second)
    assert queue.idle


async def test_an_engine_whose_tokens_are_not_known_is_never_told_to_pause() -> None:
    queue = SlotQueue(2, limit=9)
    queue.resume(pausing=False)
    flood = [Guest(queue, "a") for _ in range(4)]
    await settle()
    other = Guest(queue, "b")
    await settle()
    assert (other.slot, queue.pauses, other.told[-1].position) == (None, 0, 1)
    await flood[0].leave()
    await settle()
    assert other.slot is not None
    await gone(other, *flood)


async def test_a_flood_that_fills_the_line_refuses_itself_and_nobody_else() -> None:
    queue = ready(1, limit=4)
    flood = [Guest(queue, "a") for _ in range(5)]
    await settle()
    with pytest.raises(Busy, match="4 requests"), acting_as("a"):
        async with queue.slot([1]):
            pass
    other = Guest(queue, "b")
    await settle()
    assert not other.task.done()
    with pytest.raises(Busy):
        await flood[-1].task
    await gone(other, *flood)
    assert queue.idle


async def test_where_a_flood_makes_room_in_line_its_answers_that_have_begun_keep_their_places() -> None:
    queue = ready(2, limit=2)
    first, second, third = (Guest(queue, "a") for _ in range(3))
    await settle()
    others = [Guest(queue, "b")]
    await settle()
    assert (second.paused, second.slot) == (1, None)
    others.append(Guest(queue, "c"))
    await settle()
    assert not second.task.done()
    with pytest.raises(Busy, match="2 requests"):
        await third.task
    await gone(first, second, *others)
    assert queue.idle


async def test_who_had_a_slot_before_is_not_refused_however_full_the_line_is() -> None:
    queue = ready(1, limit=0)
    holder = Guest(queue, "a")
    await settle()

    async def come_back() -> None:
        async with queue.slot([1], again=True):
            pass

    with acting_as("b"):
        other = asyncio.create_task(come_back())
    await settle()
    assert queue.waiting == 1
    await holder.leave()
    await other
    assert queue.idle


async def test_a_line_full_of_others_is_the_service_s_limit_and_says_when_to_come_back() -> None:
    queue = ready(1, limit=2)
    guests = [Guest(queue, name) for name in "abc"]
    await settle()
    with pytest.raises(Full) as refused, acting_as("d"):
        async with queue.slot([1]):
            pass
    assert refused.value.retry_after >= 1
    await gone(*guests)


async def test_a_hundred_users_at_once_are_all_told_and_all_served() -> None:
    queue = ready(4, limit=100)
    guests = [Guest(queue, f"u{n}") for n in range(100)]
    await settle()
    assert all(guest.slot is not None or guest.told for guest in guests)
    waiting = [guest for guest in guests if guest.slot is None]
    assert sorted(guest.told[-1].position for guest in waiting) == list(range(1, 97))
    while left := [guest for guest in guests if not guest.task.done()]:
        await next(guest for guest in left if guest.slot is not None).leave()
        await settle()
    assert queue.idle


def claims(users: st.SearchStrategy[str]) -> st.SearchStrategy[list[Claim]]:
    made = st.builds(Claim, users, st.floats(0, 100), st.booleans(), st.integers(0, 2 * SLICE))
    return st.lists(made, max_size=20)


USERS = st.sampled_from("abcd")
HELD = st.dictionaries(USERS, st.integers(0, 4))
STANDINGS = st.dictionaries(USERS, st.floats(0, DEBT)).map(lambda found: defaultdict(float, found))


@given(claims(USERS), HELD, STANDINGS, st.integers(1, 8))
def test_everybody_has_exactly_one_place_in_line(
    waiting: list[Claim], held: dict[str, int], standings: dict[str, float], slots: int
) -> None:
    found = list(order(waiting, held, standings, slots=slots, cost=100))
    assert sorted(found) == list(range(len(waiting)))


@given(claims(USERS), HELD, STANDINGS, st.integers(1, 8))
def test_whoever_has_less_than_a_share_goes_before_whoever_has_one(
    waiting: list[Claim], held: dict[str, int], standings: dict[str, float], slots: int
) -> None:
    active = {claim.user for claim in waiting} | {user for user, count in held.items() if count}
    share, has = max(1, slots // max(1, len(active))), Counter(held)
    beyond = []
    for index in order(waiting, held, standings, slots=slots, cost=100):
        beyond.append(has[waiting[index].user] >= share)
        has[waiting[index].user] += 1
    assert beyond == sorted(beyond)


@given(st.builds(Claim, USERS, st.floats(0, 100), st.booleans()), claims(USERS), STANDINGS)
def test_a_pause_never_leaves_its_user_with_less_than_who_it_is_for_unless_far_ahead(
    claim: Claim, served: list[Claim], standings: dict[str, float]
) -> None:
    held = Counter(other.user for other in served)
    found = to_pause(claim, served, held, standings)
    if found is None:
        return
    other = served[found]
    if other.user == claim.user:
        assert claim.talk
        assert not other.talk
    elif held[other.user] - 1 < held[claim.user] + 1:
        assert held[claim.user] == 0
        assert standings[other.user] > standings[claim.user] + QUANTUM
        assert other.said >= SLICE


@given(
    st.lists(st.tuples(USERS, st.sampled_from(["join", "leave", "charge"]), st.floats(0, 5000)), max_size=60)
)
def test_nobody_saves_up_by_being_away_nor_falls_behind_by_more_than_the_debt(
    steps: list[tuple[str, str, float]],
) -> None:
    shares, active = Shares(), Counter[str]()
    for user, step, tokens in steps:
        if step == "join":
            shares.join(user)
            active[user] += 1
        elif active[user] and step == "leave":
            shares.leave(user)
            active[user] -= 1
        elif active[user]:
            shares.charge(user, tokens)
        standings = shares.standings()
        ahead = [standings[name] for name, count in active.items() if count]
        assert all(0 <= value <= DEBT for value in ahead)
        assert not ahead or min(ahead) == 0


@given(
    st.lists(
        st.tuples(USERS, st.sampled_from(["come", "come", "cancel", "leave", "serve"]), st.integers(0, 30)),
        max_size=40,
    )
)
async def test_whoever_comes_leaves_or_gives_up_no_slot_is_idle_while_somebody_waits_and_no_ghost_stays(
    steps: list[tuple[str, str, int]],
) -> None:
    queue = ready(3)
    guests: list[Guest] = []
    for user, step, number in steps:
        there = [guest for guest in guests if not guest.task.done()]
        served = [guest for guest in there if guest.slot is not None]
        if step == "come":
            guests.append(Guest(queue, user, session="s" * (number % 2)))
        elif step == "cancel" and there:
            there[number % len(there)].task.cancel()
        elif step == "leave" and served:
            await served[number % len(served)].leave()
        elif step == "serve" and served and (slot := served[number % len(served)].slot):
            queue.charge(slot, 300, said=300)
        await settle()
        there = [guest for guest in guests if not guest.task.done()]
        assert queue.busy == min(3, len(there)) == sum(guest.slot is not None for guest in there)
        waiting = {guest.user for guest in there if guest.slot is None}
        held = Counter(guest.user for guest in there if guest.slot is not None)
        for user in waiting:  # nobody who waits has less by two than anybody else
            assert all(count < held[user] + 2 for name, count in held.items() if name != user)
    await gone(*guests)
    assert queue.idle
    assert queue._shares.users == 0


@pytest.mark.parametrize(
    ("position", "seconds", "said"),
    [
        (1, None, "next in line"),
        (2, 3.4, "2nd in line, about 3 s"),
        (3, 21.0, "3rd in line, about 20 s"),
        (11, 300.0, "11th in line, about 5 min"),
        (22, 0.2, "22nd in line, about 1 s"),
    ],
)
def test_a_place_in_line_is_said_in_words(position: int, seconds: float | None, said: str) -> None:
    assert place_in_line(position, seconds) == said


@pytest.mark.parametrize(
    ("tokens", "index"), [([5, 5, 5, 5], 1.0), ([8, 0, 0, 0], 0.25), ([], 1.0), ([0, 0], 1.0)]
)
def test_jain_s_index_says_how_even_the_tokens_are(tokens: list[float], index: float) -> None:
    assert jain(tokens) == index


def test_people_come_first() -> None:
    assert min(Priority) is Priority.CHAT
