"""What measurements take for a first token, and for an answer: what a model thinks counts, a broken stream does not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest

from rallychat.bench.arms import Child, Prompt, Service
from rallychat.bench.heard import Heard
from rallychat.bench.load import Direct, Ours, Said
from rallychat.bench.people import Person, Turn
from rallychat.bench.server import ServerProcess
from rallychat.chat import ChatService
from rallychat.engines import wire
from rallychat.errors import EngineUnavailable
from rallychat.messages import Event, ReasoningDelta

ERROR = {"error": {"message": "the engine is gone"}}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
PROMPT = Prompt([{"role": "user", "content": "Hi"}], [])


def chunk(**delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(
        b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events
    )


@asynccontextmanager
async def serving(body: bytes) -> AsyncIterator[wire.Address]:
    """A server that answers everything with this stream."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield wire.Address.of_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_what_a_model_thinks_is_the_service_s_first_token() -> None:
    thought = stream(chunk(role="assistant", content=""), chunk(reasoning_content="Hm"), USAGE)
    async with serving(thought) as address:
        done = await Service(address, "m").answer([PROMPT], 8)
    assert done.tokens == 2
    assert done.first[0] > 0


@pytest.mark.parametrize(
    "broken",
    [stream(chunk(content="x"), ERROR), stream(chunk(content="x")), stream(chunk(content=""), USAGE)],
    ids=["error", "cut off", "no token"],
)
async def test_what_is_no_answer_of_the_service_ends_the_measurement(broken: bytes) -> None:
    async with serving(broken) as address:
        with pytest.raises(EngineUnavailable):
            await Service(address, "m").answer([PROMPT], 8)


async def test_an_answer_without_a_token_of_what_is_compared_with_ends_the_measurement() -> None:
    report = json.dumps({"tokens": 1, "seconds": 1.0, "first": [0.0]})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"input(); print('{report}')"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    with pytest.raises(EngineUnavailable, match="raw: an answer ended without a token"):
        await Child("raw", process).answer([PROMPT], 8)
    await process.communicate()


def mock(body: bytes) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/conversations":
            return httpx.Response(200, json={"id": "conv_1"})
        return httpx.Response(200, content=body)

    return httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(answer))


async def talked(body: bytes, *, ours: bool) -> Said:
    """One turn with an arm of `bench load` that is answered with this stream."""
    told: list[Said] = []
    async with mock(body) as http:
        server = cast("ServerProcess", type("Server", (), {"model": "m"}))
        raw = cast("asyncio.subprocess.Process", None)
        arm = Ours(server, http) if ours else Direct("raw", raw, http, slots=None, penalty=1.0)
        await arm.talk(Person(0.0, (Turn("Hi", 0.0, 8),)), 0, told.append)
    return told[0]


def event(number: int, kind: str, **facts: Any) -> dict[str, Any]:
    return {"sequence_number": number, "type": kind, **facts}


END = event(
    9,
    "response.completed",
    response={
        "usage": {
            "input_tokens": 3,
            "output_tokens": 2,
            "input_tokens_details": {"cached_tokens": 1},
        }
    },
)


async def test_what_a_model_thinks_is_a_first_token_under_load() -> None:
    ours = await talked(stream(event(0, "response.reasoning_text.delta", delta="Hm"), END), ours=True)
    raw = await talked(stream(chunk(reasoning_content="Hm"), USAGE), ours=False)
    for said in (ours, raw):
        assert (said.failure, said.tokens) == ("", 2)
        assert said.first_ms > 0


@pytest.mark.parametrize(
    ("broken", "ours"),
    [(b"", True), (stream(ERROR), True), (stream(END), True), (b"", False), (stream(USAGE), False)],
    ids=["nothing", "error", "no token", "nothing of the raw engine", "no token of the raw engine"],
)
async def test_what_is_no_answer_fails_under_load(broken: bytes, *, ours: bool) -> None:
    assert (await talked(broken, ours=ours)).failure


class Run:
    """Tells its events."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    async def attach(self, *, apart: bool) -> AsyncGenerator[Event]:
        for happened in self._events:
            await asyncio.sleep(0)
            yield happened


@pytest.mark.parametrize(
    "events", [(ReasoningDelta("Hm"), ReasoningDelta("?")), ()], ids=["thought", "nothing"]
)
async def test_each_turn_that_is_answered_has_a_time_that_somebody_waited(events: tuple[Event, ...]) -> None:
    class Answering:
        async def turn(self, *_: object, **__: object) -> Run:
            return Run(*events)

    heard = Heard()
    await heard.turn(cast("ChatService", Answering()), "chat", "Hi", max_tokens=8)
    assert (len(heard.first), len(heard.gaps), heard.waiting) == (1, max(0, len(events) - 1), {})
