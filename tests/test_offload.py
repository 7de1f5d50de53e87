"""Caches that leave their slots: which are worth a copy, who gets it back, and when it is gone for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.engines import offload as worker_side
from rallychat.engines.backend import Copied
from rallychat.engines.client import EngineClient
from rallychat.engines.offload import Offloaded
from rallychat.engines.protocol import EngineInfo
from rallychat.engines.slots import Slot as EngineSlot
from rallychat.engines.slots import Slots, reusable
from rallychat.errors import EngineRefused, NotFound
from rallychat.identity import acting_as
from rallychat.messages import Finished
from rallychat.pool import Engine, Preempted, Priority
from rallychat.pool.fairness import Costs
from rallychat.pool.offload import ANEW, LEAST, NEARLY, Offload
from rallychat.pool.slots import SlotQueue
from rallychat.settings import Settings

LONG = list(range(1000, 1000 + LEAST))
OTHER = list(range(5000, 5000 + LEAST))


@dataclass
class Store:
    """Stands for a worker: keeps copies by name, and says what it was asked."""

    slots: dict[int, list[int]] = field(default_factory=dict)
    copies: dict[str, list[int]] = field(default_factory=dict)
    drops: list[str] = field(default_factory=list)
    fails: bool = False
    seconds: float = 0.0
    """What a copy takes."""
    meanwhile: Callable[[], object] = lambda: None
    """Happens while a copy is made or brought back."""

    async def save(self, slot: int, name: str, prompt: list[int]) -> tuple[list[str], float]:
        if self.fails:
            raise EngineRefused("no room")
        self.meanwhile()
        self.copies[name] = self.slots[slot]
        dropped, self.drops = self.drops, []
        return dropped, self.seconds

    async def restore(self, slot: int, name: str, *, cache_salt: str | None) -> float:
        if self.fails or name not in self.copies:
            raise EngineRefused("no such copy")
        self.slots[slot] = self.copies[name]
        self.meanwhile()
        return self.seconds

    async def discard(self, names: list[str]) -> None:
        for name in names:
            self.copies.pop(name, None)


def slow() -> Costs:
    """An engine that reads a hundred tokens a second."""
    costs = Costs()
    costs.read(100, 1.0)
    return costs


class World:
    """A queue of slots, the copies, and a stand-in for the engine."""

    def __init__(self, slots: int = 1, costs: Costs | None = None, bytes_per_token: int = 0) -> None:
        self.queue = SlotQueue(slots, limit=100)
        self.queue.resume()
        self.offload = Offload(costs or slow())
        self.offload.begin(bytes_per_token)
        self.store = Store()

    async def say(
        self,
        ids: list[int],
        session: str = "",
        user: str = "ann",
        priority: Priority = Priority.CHAT,
        *,
        paused: bool = False,
    ) -> int:
        """An answer to a prompt of `ids`; how much of it was in the slot. One that is `paused` raises Preempted."""
        with acting_as(user):
            async with self.queue.slot(ids, session=session, priority=priority) as slot:
                client = cast(EngineClient, self.store)
                await self.offload.exchange(slot, ids, client, salt=user, rollback=True)
                there = reusable(slot.ids, ids, rollback=True)
                slot.ids = self.store.slots[slot.index] = ids
                if paused:
                    raise Preempted
                return there


async def test_a_conversation_that_had_to_leave_its_slot_finds_its_cache_again() -> None:
    world = World()
    assert await world.say(LONG, "a") == 0
    assert await world.say(OTHER, "b") == 0
    assert await world.say([*LONG, 1, 2], "a") == len(LONG)
    assert await world.say([*OTHER, 1, 2], "b") == len(OTHER)
    assert (world.offload.saved, world.offload.restored) == (2, 2)


async def test_where_conversations_drive_each_other_out_they_are_copied_before_anybody_needs_the_slot() -> (
    None
):
    world = World()
    client = cast(EngineClient, world.store)
    await world.say(LONG, "a")
    await world.offload.keep(world.queue.slots[0], client)
    assert world.offload.saved == 0  # there is a slot for everybody
    await world.say(OTHER, "b")
    await world.offload.keep(world.queue.slots[0], client)
    assert world.offload.saved == 2
    assert await world.say([*LONG, 1], "a") == len(LONG)
    assert world.offload.saved == 2
    world.queue.slots[0].stale = True
    await world.offload.keep(world.queue.slots[0], client)
    assert world.offload.saved == 2


async def test_what_is_short_is_read_again_rather_than_copied() -> None:
    world = World()
    await world.say(LONG[:-1], "a")
    await world.say(OTHER, "b")
    assert (await world.say(LONG, "a"), world.offload.saved) == (0, 1)  # of b


async def test_requests_without_a_conversation_are_kept_for_who_goes_on_from_them() -> None:
    world = World()

    def prompt(start: int, more: int = 0) -> list[int]:
        return list(range(start, start + LEAST + more))

    for start in (1000, 3000, 5000):
        await world.say(prompt(start))
    assert world.offload.saved == 0  # a flood of single questions
    assert await world.say(prompt(5000, 50)) == LEAST
    for start in (1000, 3000):
        await world.say(prompt(start))
    assert world.offload.saved == 2
    assert await world.say(prompt(5000, 60)) == LEAST + 50
    assert await world.say(prompt(1000, 50), user="ben") == 0
    assert world.offload.saved == 3  # ben does not wait for ann's


async def test_an_answer_that_made_way_finds_its_cache_again_without_a_conversation() -> None:
    world = World()
    with pytest.raises(Preempted):
        await world.say(LONG, paused=True)
    await world.say(OTHER, user="ben")
    assert world.offload.saved == 1
    assert await world.say([*LONG, 1, 2]) == len(LONG)
    assert world.store.copies == {}  # else those of a flood would drive out those of conversations
    await world.say(OTHER, user="ben")
    assert world.offload.saved == 1  # it came to its end


async def test_a_copy_is_never_given_to_another_user_or_conversation() -> None:
    world = World()
    await world.say(LONG, "a", "ann")
    await world.say(OTHER, "b", "ben")
    assert await world.say(LONG, "c", "ann") == 0
    assert await world.say(LONG, "a2", "ben") == 0
    assert await world.say(LONG, "", "ann") == 0


async def test_nothing_is_kept_of_a_batch_a_measurement_or_a_prompt_that_moved_elsewhere() -> None:
    world = World(2)
    await world.say(LONG, "", priority=Priority.BATCH)
    await world.say(OTHER, "", priority=Priority.TITLES)
    for start in (20_000, 30_000):
        await world.say(list(range(start, start + LEAST)), f"{start}")
    assert world.offload.saved == 0
    world.queue.slots[0].stale = True
    world.queue.slots[1].used_at += 100
    await world.say(LONG, "c")
    assert world.offload.saved == 0


async def test_an_engine_without_room_loses_nothing_but_time() -> None:
    world = World()
    await world.say(LONG, "a")
    world.store.fails = True
    await world.say(OTHER, "b")
    assert await world.say([*LONG, 1], "a") == 0
    world.store.fails = False
    await world.say(OTHER, "b")
    world.store.fails = True
    assert await world.say([*LONG, 1], "a") == 0
    assert await world.say([*LONG, 1, 2], "a") == len(LONG) + 1


@pytest.mark.parametrize("deleted", [{"session": "a"}, {"user": "ann"}])
async def test_a_copy_that_is_forgotten_while_it_is_made_or_brought_back_is_discarded(
    deleted: dict[str, str],
) -> None:
    world = World()
    forgotten: list[str] = []
    await world.say(LONG, "a")
    world.store.meanwhile = lambda: forgotten.extend(world.offload.forget(**deleted))
    await world.say(OTHER, "b", "ben")
    assert len(forgotten) == 1
    assert world.store.copies == {}
    assert world.offload.of("a") == []
    world.store.meanwhile = lambda: None
    await world.say(LONG, "a")
    await world.say(OTHER, "b", "ben")
    (name,) = [name for name, ids in world.store.copies.items() if ids == LONG]
    forgotten.clear()
    world.store.meanwhile = lambda: forgotten.extend(world.offload.forget(**deleted))
    await world.say([*LONG, 1], "a")
    assert name in forgotten
    assert world.offload.of("a") == []


async def test_a_copy_that_nobody_waited_for_to_the_end_can_be_forgotten() -> None:
    world = World()
    await world.say(LONG, "a")
    store, save = world.store, world.store.save

    async def left(slot: int, name: str, prompt: list[int]) -> tuple[list[str], float]:
        await save(slot, name, prompt)
        raise asyncio.CancelledError

    store.save = left  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await world.say(OTHER, "b")
    assert world.offload.forget(session="a") == list(store.copies)


async def test_copies_that_had_to_go_are_not_counted_on() -> None:
    world = World()
    await world.say(LONG, "a")
    await world.say(OTHER, "b")
    world.store.drops = list(world.store.copies)
    await world.say([*range(LEAST)], "c")
    assert (world.offload.of("a"), world.offload.of("b")) == ([], OTHER)


@pytest.mark.parametrize(("read_per_second", "bytes_per_token"), [(20_000, 0), (100, 2_000_000)])
async def test_what_is_read_as_fast_as_it_is_copied_is_not_copied(
    read_per_second: int, bytes_per_token: int
) -> None:
    """Not even to find out: on a GPU the copy of a large model's cache takes seconds, and reading none."""
    costs = Costs()
    costs.read(read_per_second, 1.0)
    world = World(costs=costs, bytes_per_token=bytes_per_token)
    for turn in range(20):
        await world.say(LONG if turn % 2 else OTHER, str(turn % 2))
    assert world.offload.saved == 0


async def test_where_copying_takes_as_long_as_reading_it_ends_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("rallychat.pool.offload.time.monotonic", lambda: now)
    world = World()
    world.store.seconds = 1.0

    async def turns() -> None:
        for turn in range(10):
            await world.say([*(LONG if turn % 2 else OTHER), *range(turn)], str(turn % 2))

    await turns()
    assert (world.offload.saved, world.offload.restored) == (1, 1)  # which was found out to be no quicker
    now += ANEW + 1
    world.store.seconds = 0.01
    await turns()
    assert world.offload.restored > 5


async def test_a_copy_that_had_to_wait_for_the_answers_of_others_does_not_end_copying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was so for minutes after one of them: the engine was in the midst of a step when it was asked for."""
    now = 1000.0
    monkeypatch.setattr("rallychat.pool.offload.time.monotonic", lambda: now)
    world = World()
    world.store.seconds = 0.01

    def step() -> None:
        nonlocal now
        now += 1.0

    world.store.meanwhile = step
    for turn in range(20):
        there = await world.say([*(LONG if turn % 2 else OTHER), *range(turn)], str(turn % 2))
        assert (there >= LEAST) is (turn >= 2)


async def test_before_any_prompt_was_read_nothing_is_copied() -> None:
    world = World(costs=Costs())
    await world.say(LONG, "a")
    await world.say(OTHER, "b")
    assert world.offload.saved == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3 * LEAST)), min_size=2, max_size=25
    )
)
def test_whoever_comes_back_has_what_is_theirs_and_no_more(turns: list[tuple[int, int, int]]) -> None:
    """Any order of conversations, of growing and shrinking prompts, on few slots."""

    async def run() -> None:
        world = World(2)
        said: dict[tuple[int, int], list[list[int]]] = {}
        for chat, user, size in turns:
            ids, before = [chat * 10 + user] * (size + 1), said.setdefault((chat, user), [[]])
            there = await world.say(ids, f"{chat}-{user}", f"user {user}")
            assert there <= max(reusable(one, ids, rollback=True) for one in before)
            shared = reusable(before[-1], ids, rollback=True)
            if shared >= LEAST + NEARLY and shared * 2 >= len(before[-1]):
                assert there > shared - NEARLY
            before.append(ids)

    asyncio.run(run())


class Copier:
    """A backend whose copies take so many bytes."""

    info = EngineInfo(engine="copier", window=1000, offload=True)

    def __init__(self, size: int) -> None:
        self.size = size
        self.files: set[str] = set()
        self.broken = False

    async def save(self, slot: EngineSlot, name: str) -> Copied:
        self.files.add(name)
        return Copied(self.size, 5.0)

    async def restore(self, slot: EngineSlot, name: str) -> float:
        if self.broken:
            raise EngineRefused("unreadable")
        return 3.0

    def discard(self, name: str) -> None:
        self.files.discard(name)


def offloaded(copier: Copier, most: int, slots: int = 2) -> tuple[Offloaded, Slots]:
    kept = Slots(slots, patience=0.01)
    return Offloaded(cast(Any, copier), kept, most=most), kept


async def test_the_oldest_copies_go_where_there_is_no_room_for_all() -> None:
    copier = Copier(40)
    kept, _ = offloaded(copier, most=100)
    dropped = [await kept.save(0, name, []) for name in ("a", "b", "c", "d")]
    assert dropped == [([], 5.0), ([], 5.0), (["a"], 5.0), (["b"], 5.0)]
    assert copier.files == {"c", "d"}
    assert await kept.save(0, "c", []) == ([], 5.0)  # again: it is the newest now
    assert await kept.save(0, "e", []) == (["d"], 5.0)


async def test_one_that_is_larger_than_all_there_is_room_for_is_not_kept() -> None:
    copier = Copier(101)
    kept, _ = offloaded(copier, most=100)
    assert (await kept.save(0, "a", []), copier.files) == ((["a"], 5.0), set())


async def test_a_copy_that_cannot_be_read_leaves_an_empty_slot_and_no_file() -> None:
    copier = Copier(1)
    kept, slots = offloaded(copier, most=100)
    slots.release(await slots.hold(0), [1, 2, 3])
    await kept.save(0, "a", [])
    copier.broken = True
    with pytest.raises(EngineRefused):
        await kept.restore(0, "a", salt=None)
    assert ((await slots.hold(0)).held, copier.files) == ([], set())
    with pytest.raises(NotFound):
        await kept.restore(0, "a", salt=None)


async def test_a_slot_whose_new_cache_did_not_come_to_the_end_is_taken_to_hold_another_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copier = Copier(1)
    kept, slots = offloaded(copier, most=100, slots=1)
    slots.release(slots.take([1], 0, salt="his"), [1])
    await kept.save(0, "a", [1])
    slots.release(slots.take([2], 0, salt="hers"), [2])
    with monkeypatch.context() as patch:
        patch.setattr(copier, "restore", AsyncMock(side_effect=asyncio.CancelledError))
        with pytest.raises(asyncio.CancelledError):
            await kept.restore(0, "a", salt="his")
    with pytest.raises(EngineRefused, match="something else"):
        await kept.save(0, "b", [2])
    slot = slots.take([2], 0, salt="his")
    assert slot.foreign
    slots.release(slot, [], begun=False)
    await kept.restore(0, "a", salt="his")
    assert not slots.take([1], 0, salt="his").foreign


async def test_copies_age_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_side, "KEPT", 0.05)
    copier = Copier(1)
    kept, _ = offloaded(copier, most=100)
    await kept.save(0, "a", [])
    while copier.files:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


async def test_a_copy_that_is_discarded_while_it_is_made_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    copier = Copier(1)
    kept, slots = offloaded(copier, most=100)
    save = copier.save

    async def overtaken(slot: EngineSlot, name: str) -> Copied:
        kept.discard([name])
        return await save(slot, name)

    monkeypatch.setattr(copier, "save", overtaken)
    with pytest.raises(EngineRefused, match="discarded"):
        await kept.save(0, "a", [])
    assert copier.files == set()
    with pytest.raises(NotFound):
        await kept.restore(0, "a", salt=None)
    monkeypatch.undo()
    assert (await kept.save(0, "a", []), copier.files) == (([], 5.0), {"a"})
    assert not (await slots.hold(0)).held


async def test_without_room_an_engine_refuses() -> None:
    kept, _ = offloaded(Copier(1), most=0)
    with pytest.raises(EngineRefused):
        await kept.save(0, "a", [])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("rallychat.pool.offload.LEAST", 8)
    monkeypatch.setattr("rallychat.pool.offload.FELT", 0.0)
    monkeypatch.setattr("rallychat.pool.offload.WORTH", 1e9)
    scripted(tmp_path, "scripted", "", window=1024)
    return Settings(data_dir=tmp_path, model="scripted", slots=1, titles=False)


async def said(service: ChatService, conversation: str, text: str) -> Finished:
    end = await (await service.turn(conversation, text)).wait()
    assert isinstance(end, Finished)
    return end


def engine_of(service: ChatService) -> Engine:
    (engine,) = service.pool.engines()
    return engine


async def test_two_conversations_on_one_slot_both_go_on_from_their_caches(settings: Settings) -> None:
    async with ChatService.open(settings) as service:
        chats = [(await service.store.create()).id for _ in range(2)]
        for chat in chats:
            await said(service, chat, f"Say something about {chat}.")
        for chat in chats:
            end = await said(service, chat, "And more.")
            assert end.usage.cached_tokens > end.usage.prompt_tokens // 2
        assert engine_of(service).offload.restored >= 2


async def test_of_a_deleted_conversation_or_user_no_copy_stays(settings: Settings) -> None:
    async with ChatService.open(settings) as service:
        chats = [(await service.store.create()).id for _ in range(3)]
        for chat in chats:
            await said(service, chat, f"Say something about {chat}.")
        await service.idle.settled()
        offload = engine_of(service).offload
        kept = [chat for chat in chats if offload.of(chat)]
        assert kept
        await service.delete(kept[0])
        assert not offload.of(kept[0])
        service.pool.forget(user="nobody at all")
        assert [chat for chat in chats if offload.of(chat)] == kept[1:]


async def test_it_can_be_turned_off(settings: Settings) -> None:
    async with ChatService.open(settings.model_copy(update={"kv_offload_mb": 0})) as service:
        chats = [(await service.store.create()).id for _ in range(2)]
        for chat in [*chats, *chats]:
            await said(service, chat, f"Say something about {chat}.")
        assert (engine_of(service).offload.saved, engine_of(service).offload.restored) == (0, 0)
