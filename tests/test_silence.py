"""When an engine counts as hung: what is its silence, and what is not. The peer says exactly what it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress

import pytest

from rallychat.engines import wire
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, EngineEvent, EngineInfo
from rallychat.errors import EngineInterrupted, EngineUnavailable
from tests.served import DONE, END, Asked, Served, chunk, event, reply, served, stream_head

OURS = EngineInfo(engine="llamacpp", window=64, slots=2, slot_affinity=True).model_dump()
PROGRESS = chunk(event({"choices": [], "prompt_progress": {"total": 3, "cached": 0, "processed": 3}}))
LAST = chunk(
    event({"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "length"}]})
    + event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    + DONE
)
QUIET, TALKATIVE = [1], [2]
"""Prompts: one waits until it is allowed to say something, the other says something over and over."""


class Peer:
    """An engine with two answers at most, of which one is given when it may `speak`."""

    def __init__(self, *, patience: float = 1.0) -> None:
        self.patience = patience
        self.speak = asyncio.Event()

    def __call__(self, asked: Asked) -> Iterator[bytes | asyncio.Event]:
        if asked.method == "GET":
            yield reply(OURS)
        elif asked.body["prompt"] == QUIET:
            yield stream_head() + PROGRESS
            yield self.speak
            yield PROGRESS + LAST + END
        else:
            yield stream_head()
            while True:
                yield PROGRESS
                yield after(self.patience / 20)

    def client(self, server: Served) -> EngineClient:
        return EngineClient(base_url=server.url, stall_timeout=self.patience)


def after(seconds: float) -> asyncio.Event:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, event.set)
    return event


def asking(client: EngineClient, prompt: list[int]) -> AsyncGenerator[EngineEvent]:
    return client.generate(CompletionRequest(prompt=prompt, max_tokens=2))


async def collected(events: AsyncGenerator[EngineEvent]) -> int:
    return len([event async for event in events])


async def begun(client: EngineClient) -> asyncio.Task[int]:
    """An answer that has begun, and then waits until the engine speaks."""
    events = asking(client, QUIET)
    await anext(events)
    return asyncio.create_task(collected(events))


async def test_a_server_that_stood_still_does_not_take_that_for_silence() -> None:
    peer = Peer()
    async with served(peer) as server:
        rest = await begun(peer.client(server))
        await after(peer.patience / 10).wait()
        time.sleep(1.5 * peer.patience)  # noqa: ASYNC251 - engine and server are stopped, and go on together
        peer.speak.set()
        assert await rest == 2


async def test_a_server_that_runs_now_and_then_knows_little_of_the_engines_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "_LATE", 0.05)
    peer = Peer(patience=0.5)
    async with served(peer) as server:
        rest = await begun(peer.client(server))
        for _ in range(15):
            time.sleep(0.12)  # noqa: ASYNC251 - each tick, of 0.05 seconds, is late
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        peer.speak.set()
        assert await rest == 2


async def test_what_arrived_with_the_last_look_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_TICKS", 1)
    asked: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: asked.put_nowait(streams), "127.0.0.1", 0)
    address = wire.Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    request = wire.request(address, "GET", "/", patience=1)
    async with server:
        answer = asyncio.create_task(request.__aenter__())
        reader, writer = await asked.get()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply({}))
        time.sleep(1.2)  # noqa: ASYNC251 - the answer and the timer are due in one round of the loop
        assert (await answer).status == 200
        await request.__aexit__(None, None, None)
        writer.close()


async def test_who_waits_behind_the_prompts_of_others_is_not_taken_for_hung() -> None:
    peer = Peer()
    async with served(peer) as server:
        client = peer.client(server)
        async with aclosing(asking(client, TALKATIVE)) as others:
            await anext(others)
            waiting = asyncio.create_task(collected(asking(client, QUIET)))
            enough = after(3 * peer.patience)
            while not enough.is_set():
                await anext(others)
            peer.speak.set()
            assert await waiting == 3


async def test_an_answer_that_hangs_alone_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "_BEHIND", 2)
    peer = Peer()
    async with served(peer) as server:
        client = peer.client(server)
        async with aclosing(asking(client, TALKATIVE)) as others:
            await anext(others)
            waiting = asyncio.create_task(collected(asking(client, QUIET)))
            while not waiting.done():
                await anext(others)
            with pytest.raises(EngineInterrupted, match=r"hangs: it was silent for 2 seconds\.") as caught:
                await waiting
    assert caught.value.hung


async def test_requests_that_a_hung_engine_still_answers_are_no_sign_of_life() -> None:
    peer = Peer()
    async with served(peer) as server:
        client = peer.client(server)
        waiting = asyncio.create_task(collected(asking(client, QUIET)))
        while not waiting.done():
            with suppress(EngineUnavailable):  # no connection within a second, on a machine with much to do
                await client.health()
            await after(0.01).wait()
        with pytest.raises(EngineInterrupted, match=r"silent for 1 seconds"):
            await waiting
