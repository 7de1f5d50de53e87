"""What belongs to one person is not there for another: rows, runs, idempotency keys, cached prefixes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.bench.scripted import scripted
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.engines.backend import BackendEvent
from rallychat.engines.echo import Echo
from rallychat.engines.protocol import CompletionRequest, WorkerSpec
from rallychat.engines.serving import Serving
from rallychat.engines.slots import Slot, Slots
from rallychat.errors import NotFound
from rallychat.identity import acting_as, current
from rallychat.messages import Message, TextDelta
from rallychat.pool.slots import SlotQueue
from rallychat.store import ConversationStore, Memory, TokenSpan
from tests.api_world import settings

REQUEST: dict[str, Any] = {"instructions": None, "metadata": {}}


class Hers:
    """One conversation with all that can belong to it, made by its owner."""

    conversation: str
    said: str
    answer: str
    response: str


async def made(store: ConversationStore) -> Hers:
    hers = Hers()
    hers.conversation = (await store.create(title="mine")).id
    said, answer = await store.answers.begin(
        hers.conversation, parent_id=None, user=Message.of("user", "about zebras"), model="echo"
    )
    assert said is not None
    hers.said, hers.answer = said.id, answer.id
    await store.answers.finish(answer.id, parts=(), reason="stop", usage=None, timings=None)
    await store.contexts.remember(hers.conversation, Memory("facts", "a zebra", said.id))
    begun, _ = await store.responses.begin(
        hers.conversation, said=[Message.of("user", "more zebras")], model="echo", request=REQUEST
    )
    hers.response = begun.id
    await store.answers.finish(begun.answer.id, parts=(), reason="stop", usage=None, timings=None)
    return hers


Attempt = Callable[[ConversationStore, Hers], Awaitable[object]]
HELLO = Message.of("user", "hello")
ATTEMPTS: dict[str, Attempt] = {
    "get": lambda s, h: s.get(h.conversation),
    "update": lambda s, h: s.update(h.conversation, title="stolen"),
    "delete": lambda s, h: s.delete(h.conversation),
    "message": lambda s, h: s.message(h.said),
    "path": lambda s, h: s.path(h.conversation),
    "siblings": lambda s, h: s.siblings(h.said),
    "select": lambda s, h: s.select(h.conversation, h.said),
    "begin": lambda s, h: s.answers.begin(h.conversation, parent_id=None, user=HELLO, model="echo"),
    "resume": lambda s, h: s.answers.resume(h.answer),
    "finish": lambda s, h: s.answers.finish(h.answer, parts=(), reason="stop", usage=None, timings=None),
    "list before": lambda s, h: s.list(before=h.conversation),
    "mark": lambda s, h: s.contexts.mark(h.said, "pin"),
    "memories": lambda s, h: s.contexts.memories(h.conversation),
    "remember": lambda s, h: s.contexts.remember(h.conversation, Memory("facts", "x", h.said)),
    "set_active": lambda s, h: s.contexts.set_active(h.conversation, 1, active=False),
    "append": lambda s, h: s.items.append(h.conversation, [HELLO]),
    "remove": lambda s, h: s.items.remove(h.conversation, h.said, which=lambda _: [0]),
    "response": lambda s, h: s.responses.get(h.response),
    "response delete": lambda s, h: s.responses.delete(h.response),
    "response begin": lambda s, h: s.responses.begin(
        h.conversation, said=[HELLO], model="echo", request=REQUEST
    ),
}
"""Every method that is given a name of something."""


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_what_is_somebody_else_s_is_not_there(name: str, tmp_path: Path) -> None:
    async with ConversationStore.open(settings(tmp_path)) as store:
        with acting_as("user_her"):
            hers = await made(store)
            before = await everything(store, hers)
        with acting_as("user_him"):
            with pytest.raises(NotFound):
                await ATTEMPTS[name](store, hers)
        with acting_as("user_her"):
            assert await everything(store, hers) == before


async def everything(store: ConversationStore, hers: Hers) -> object:
    return (
        await store.get(hers.conversation),
        await store.path(hers.conversation),
        await store.contexts.memories(hers.conversation),
        await store.responses.get(hers.response),
    )


async def test_nothing_of_others_is_listed_found_or_overwritten(tmp_path: Path) -> None:
    async with ConversationStore.open(settings(tmp_path)) as store:
        with acting_as("user_her"):
            hers = await made(store)
            await store.keys.claim("key", "f1")
            taken = await store.responses.get(hers.response)
        with acting_as("user_him"):
            assert await store.list() == []
            assert await store.contexts.search("zebras") == []
            assert await store.contexts.search("zebras", conversation_id=hers.conversation) == []
            assert await store.keys.claim("key", "f2") is None
            assert await store.responses.inputs(taken) == []
            await store.save_spans({hers.said: TokenSpan("k", (1, 2))})
        with acting_as("user_her"):
            assert len(await store.contexts.search("zebras")) == 2
            assert (await store.message(hers.said)).span is None
            claim = await store.keys.claim("key", "f1")
            assert claim is not None
            assert claim.fingerprint == "f1"


async def test_a_run_is_watched_and_stopped_by_its_own_person_alone(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        with acting_as("user_her"):
            conversation = await service.store.create()
            run = await service.turn(conversation.id, "!count 200")
        with acting_as("user_him"):
            with pytest.raises(NotFound):
                await service.stop(run.id)
            assert service.runs.of_conversation(conversation.id) is None
            assert service.runs.of_message(run.message_id) is None
        with acting_as("user_her"):
            assert service.runs.of_conversation(conversation.id) is run
            await service.stop(run.id)
        assert run.done


async def test_idle_work_is_done_for_whose_conversation_it_is_also_after_the_engine_came_back(
    tmp_path: Path,
) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        with acting_as("user_her"):
            conversation = await service.store.create()
            await (await service.turn(conversation.id, "Good morning")).wait()
        await service.idle.settled()
        engine = service.pool.find("echo")
        assert engine is not None
        assert await titled(service, conversation.id)
        seen: list[str] = []
        get = service.store.get

        async def noting(conversation_id: str) -> Any:
            seen.append(current().id)
            return await get(conversation_id)

        service.store.get = noting  # type: ignore[method-assign]
        with acting_as("user_him"):
            engine.restarts = 1
            service.idle._loaded(engine)
        await service.idle.settled()
        assert set(seen) == {"user_her"}


async def titled(service: ChatService, conversation_id: str) -> bool:
    with acting_as("user_her"):
        return bool((await service.store.get(conversation_id)).title)


async def test_answers_of_several_people_are_saved_while_they_grow(tmp_path: Path) -> None:
    scripted(tmp_path, "slow", "delay_ms = 5")
    async with ChatService.open(settings(tmp_path)) as service, AsyncExitStack() as stack:
        for user in ("user_her", "user_him"):
            with acting_as(user):
                conversation = await service.store.create()
                run = await service.turn(
                    conversation.id, "!count 100000", model="slow", sampling=Sampling(max_tokens=4000)
                )
                stack.push_async_callback(run.stop)
                async with aclosing(run.attach()) as events:
                    async for event in events:
                        if isinstance(event, TextDelta):
                            break
        await service.runs._save(list(service.runs._growing.values()))
        for run in list(service.runs._growing.values()):
            with acting_as(run.user_id):
                assert (await service.store.message(run.message_id)).text


async def test_another_person_s_cached_prefix_is_not_reused_even_if_it_is_the_same() -> None:
    queue = SlotQueue(2, limit=9)
    queue.resume()
    ids = list(range(20))
    with acting_as("user_her"):
        async with queue.slot(ids, session="a") as hers:
            hers.ids = ids
    with acting_as("user_him"):
        async with queue.slot(ids, session="b") as his:
            assert his is not hers
            his.ids = ids
    with acting_as("user_third"):
        async with queue.slot(ids, session="c") as third:
            assert third.ids == []
            taken = third
    with acting_as("user_her" if taken is his else "user_him"):
        async with queue.slot(ids, session="a" if taken is his else "b") as again:
            assert again is not taken
            assert again.ids == ids


def test_a_worker_counts_what_is_held_under_another_salt_as_nothing() -> None:
    slots = Slots(1)
    slots.release(slots.take([1, 2, 3], None, salt="her"), [1, 2, 3])
    again = slots.take([1, 2, 3], None, salt="her")
    assert (again.held, again.foreign) == ([1, 2, 3], False)
    slots.release(again, [1, 2, 3])
    other = slots.take([1, 2, 3], 0, salt="him")
    assert (other.held, other.foreign) == ([], True)
    slots.release(other, [1, 2])
    assert slots.take([1, 2], None, salt="him").held == [1, 2]


class Slow(Echo):
    """Begins when it may, and remembers in whose slots it was to."""

    def __init__(self) -> None:
        super().__init__(WorkerSpec("echo", "echo"))
        self.asked, self.may_begin = asyncio.Event(), asyncio.Event()
        self.foreign: list[bool] = []

    async def generate(self, request: CompletionRequest, slot: Slot) -> AsyncGenerator[BackendEvent]:
        self.foreign.append(slot.foreign)
        self.asked.set()
        await self.may_begin.wait()
        async for event in super().generate(request, slot):
            yield event


async def test_who_hangs_up_before_the_engine_begins_is_given_nothing_of_what_another_said_there() -> None:
    engine = Slow()
    engine.may_begin.set()
    transport = httpx.ASGITransport(Serving(engine, model="echo", slots=1, key=None))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as http:

        async def ask(salt: str) -> None:
            asked = {"prompt": [5, 6, 7], "max_tokens": 1, "stream": True, "cache_salt": salt}
            assert (await http.post("/v1/completions", json=asked)).is_success

        await ask("hers")
        engine.asked.clear()
        engine.may_begin.clear()
        leaving = asyncio.create_task(ask("his"))
        await engine.asked.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        engine.may_begin.set()
        await ask("his")
        await ask("his")
    assert engine.foreign[1:] == [True, True, False]


async def test_the_usage_of_an_answer_tells_nothing_of_what_others_asked(tmp_path: Path) -> None:
    question = [Message.of("user", "The same question, word for word, asked by two people.")]
    async with ChatService.open(settings(tmp_path, slots=1)) as service:
        cached: list[int] = []
        for user in ("user_her", "user_her", "user_him", "user_him"):
            with acting_as(user):
                last = [event async for event in service.complete(question)][-1]
            cached.append(last.usage.cached_tokens)  # type: ignore[union-attr]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 0
