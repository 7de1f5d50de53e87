"""Streams: OpenAI's chunks byte by byte, statuses before the first token, events after it, and hanging up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.types import Message as ASGIMessage
from starlette.types import Receive, Scope, Send

from rallychat.api import delivery
from rallychat.api.chunks import ChatAnswer, TextAnswer
from rallychat.api.delivery import EventStream, whole
from rallychat.api.errors import Refusal
from rallychat.api.request_context import RequestContext
from rallychat.errors import Busy
from rallychat.messages import (
    Event,
    Failed,
    Finished,
    Loading,
    Queued,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from tests.api_world import FINISHED, STARTED, chat, client, said, scripted

FAILED = Failed("engine_interrupted", "The engine died.", "ask again")


def chunks(body: str) -> list[Any]:
    """The JSON of each event, the id and time left out; the end mark stays as it is."""
    out: list[Any] = []
    for event in body.split("\n\n")[:-1]:
        if event.startswith(":"):
            out.append(event)
            continue
        data = event.removeprefix("data: ")
        assert data != event
        out.append(data if data == "[DONE]" else orjson.loads(data))
        if isinstance(out[-1], dict):
            out[-1].pop("id", None)
            out[-1].pop("created", None)
    return out


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "model": "echo", "choices": [choice], **more}


async def test_a_chat_streams_role_text_reason_and_end_mark(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert chunks(response.text) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hello"}),
        chunk({"content": " there."}),
        chunk({}, "stop"),
        "[DONE]",
    ]


async def test_usage_comes_last_when_asked_for(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    asked = chat(stream=True, stream_options={"include_usage": True})
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=asked)
    *before, cost, done = chunks(response.text)
    assert [each["usage"] for each in before] == [None] * 4
    assert (cost["choices"], done) == ([], "[DONE]")
    assert cost["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_all_chunks_of_an_answer_share_id_and_time(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    sent = [orjson.loads(e[6:]) for e in response.text.split("\n\n")[:-2]]
    assert len({(each["id"], each["created"]) for each in sent}) == 1
    assert sent[0]["id"].startswith("chatcmpl-")


async def test_reasoning_has_a_field_of_its_own(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, STARTED, ReasoningDelta("Hm."), TextDelta("Yes."), FINISHED)
    async with client(app) as http:
        streamed = await http.post("/v1/chat/completions", json=chat(stream=True))
        at_once = await http.post("/v1/chat/completions", json=chat())
    assert [each["choices"][0]["delta"] for each in chunks(streamed.text)[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "Yes."},
        {},
    ]
    assert at_once.json()["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Hm.",
    }


async def test_a_text_completion_streams_text(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, STARTED, TextDelta("a"), Finished("length", Usage(1, 1)))
    async with client(app) as http:
        response = await http.post("/v1/completions", json={"prompt": "x", "stream": True})
    assert chunks(response.text) == [
        {
            "object": "text_completion",
            "model": "echo",
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
        }
        for text, reason in (("a", None), ("", "length"))
    ] + ["[DONE]"]


@pytest.mark.parametrize(
    "text", ['"', "\\", "\n\n", "data: [DONE]\n\n", "\u2028", "\x00", "👩‍👩‍👧", "</script>"]
)
def test_any_text_survives_a_chunk(text: str) -> None:
    for answer in (ChatAnswer("m"), TextAnswer("m")):
        sent = answer.delta(TextDelta(text))
        assert sent.count(b"\n\n") == 1
        choice = orjson.loads(sent.removeprefix(b"data: "))["choices"][0]
        assert choice.get("text", choice.get("delta", {}).get("content")) == text


def test_a_model_name_cannot_break_out_of_the_chunk() -> None:
    name = 'a"%s\n{}\\'
    sent = ChatAnswer(name, usage=True).closing(FINISHED) + TextAnswer(name, usage=True).closing(FINISHED)
    objects = [event.removeprefix(b"data: ") for event in sent.split(b"\n\n")[:-1]]
    assert {orjson.loads(each)["model"] for each in objects if each != b"[DONE]"} == {name}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("failed", "status", "retry_after"),
    [
        (Failed("queue_full", "Full.", retry_after=7.2), 429, "8"),
        (Failed("context_length_exceeded", "Too long."), 400, None),
        (Failed("engine_unavailable", "Gone."), 503, "5"),
        (Failed("internal_error", "KeyError: 'secret'"), 500, None),
    ],
)
async def test_a_failure_before_the_first_token_is_a_status(
    tmp_path: Path, stream: bool, failed: Failed, status: int, retry_after: str | None
) -> None:
    app, _ = scripted(tmp_path, Queued(1), STARTED, failed)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=stream))
    assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
    assert response.json()["error"]["code"] == failed.code
    assert "secret" not in response.text


async def test_a_failure_after_the_first_token_is_an_event_and_no_end_mark(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, STARTED, TextDelta("Hel"), FAILED)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200
    assert chunks(response.text) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        {
            "error": {
                "message": "The engine died. (ask again)",
                "type": "server_error",
                "param": None,
                "code": "engine_interrupted",
            }
        },
    ]


async def test_a_failure_is_a_status_for_those_who_do_not_stream(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, STARTED, TextDelta("Hel"), FAILED)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


class Line:
    """A connection by hand: what was sent, and a client that hangs up when told."""

    def __init__(self) -> None:
        self.sent: list[ASGIMessage] = []
        self.arrived = asyncio.Condition()
        self.hung_up = asyncio.Event()

    async def receive(self) -> ASGIMessage:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: ASGIMessage) -> None:
        async with self.arrived:
            self.sent.append(message)
            self.arrived.notify_all()

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def seen(self, text: str) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: text in self.body)


class Endless:
    """A turn that says "more" until it is closed, and knows that it was."""

    def __init__(self, *first: Event) -> None:
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()
        self.first = first

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            for event in self.first:
                yield event
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleanup may wait, as an engine's does
            self.closed.set()


async def test_a_client_that_hangs_up_in_the_middle_ends_the_turn() -> None:
    line, turn = Line(), Endless(STARTED, TextDelta("Hel"))
    stream = EventStream(turn.events(), ChatAnswer("m"))
    task = asyncio.create_task(stream({"type": "http"}, line.receive, line.send))
    await line.seen("Hel")
    line.hung_up.set()
    await task
    assert turn.closed.is_set()
    assert "[DONE]" not in line.body


async def test_a_client_that_hangs_up_in_the_queue_ends_the_turn_and_is_sent_nothing() -> None:
    line, turn = Line(), Endless(Queued(3))
    stream = EventStream(turn.events(), ChatAnswer("m"))
    task = asyncio.create_task(stream({"type": "http"}, line.receive, line.send))
    line.hung_up.set()
    await task
    assert line.sent == []


async def test_a_client_that_hangs_up_without_streaming_ends_the_turn() -> None:
    line, turn = Line(), Endless(STARTED, TextDelta("Hel"))
    line.hung_up.set()
    events = turn.events()
    assert await anext(events) == STARTED
    assert await whole(line.receive, events, prompt="messages") is None
    assert turn.closed.is_set()


async def test_a_server_that_stops_ends_the_turn() -> None:
    line, turn = Line(), Endless(STARTED, TextDelta("Hel"))
    stream = EventStream(turn.events(), ChatAnswer("m"))
    task = asyncio.create_task(stream({"type": "http"}, line.receive, line.send))
    await line.seen("Hel")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert turn.closed.is_set()
    assert '"code":"interrupted"' in line.body.split("\n\n")[-2]


async def test_a_server_that_stops_tells_those_who_still_wait() -> None:
    line, turn = Line(), Endless(Queued(3))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(turn.events(), ChatAnswer("m"))(scope, receive, send)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    task = asyncio.create_task(RequestContext(app)(scope, line.receive, line.send))
    await turn.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert turn.closed.is_set()
    assert [m["status"] for m in line.sent if m["type"] == "http.response.start"] == [503]


async def test_a_long_wait_is_filled_with_comments_and_then_an_error_is_an_event() -> None:
    line, go_on = Line(), asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        yield Queued(3)
        await go_on.wait()
        yield Loading("m", "download", 0.25)
        go_on.clear()
        await go_on.wait()
        yield FAILED

    stream = EventStream(events(), ChatAnswer("m"), keepalive=0.001)
    task = asyncio.create_task(stream({"type": "http"}, line.receive, line.send))
    await line.seen(": queued, position 3\n\n")
    go_on.set()
    await line.seen(": download 25%\n\n")
    go_on.set()
    await task
    assert [m["status"] for m in line.sent if m["type"] == "http.response.start"] == [200]
    assert line.sent[-1]["more_body"] is False
    last = orjson.loads(line.body.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["code"] == "engine_interrupted"


async def test_a_place_in_line_is_told_long_before_a_silence_would_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "SOON", 0.001)
    line, go_on = Line(), asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        for position in (3, 2):
            yield Queued(position, 20.0)
            await go_on.wait()
            go_on.clear()
        for event in (STARTED, TextDelta("Hi"), FINISHED):
            yield event

    task = asyncio.create_task(
        EventStream(events(), ChatAnswer("m"))({"type": "http"}, line.receive, line.send)
    )
    await line.seen(": queued, position 3, about 20 s\n\n")
    go_on.set()
    await line.seen(": queued, position 2, about 20 s\n\n")
    go_on.set()
    await task
    assert line.body.count(": queued") == 2
    assert line.body.endswith("data: [DONE]\n\n")


async def test_an_error_raised_before_anything_is_sent_is_left_to_the_app() -> None:
    async def refused() -> AsyncGenerator[Event, None]:
        yield Queued(1)
        raise Busy("Full.", retry_after=3)

    line = Line()
    with pytest.raises(Busy):
        await EventStream(refused(), ChatAnswer("m"))({"type": "http"}, line.receive, line.send)
    with pytest.raises(Refusal):
        await EventStream(said(FAILED), ChatAnswer("m"))({"type": "http"}, line.receive, line.send)
    assert line.sent == []


async def test_an_answer_of_no_tokens_is_still_a_whole_stream(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, STARTED, FINISHED)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert chunks(response.text) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({}, "stop"),
        "[DONE]",
    ]
