"""`rallychat bench chaos`, short: real processes, faults from a seed, nothing lost, doubled or missing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.bench import chaos
from rallychat.bench.chaos import ECHO, World, run_chaos
from rallychat.bench.client import Cut, Refused, Sent, Talker
from rallychat.bench.on_page import OnPage
from rallychat.settings import Settings
from rallychat.ui import conversation_routes, turn_routes
from tests.api_world import client
from tests.responses_world import world


@pytest.mark.sqlite
@pytest.mark.timeout(240)
async def test_nothing_is_lost_while_everything_fails(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "CALM", (0.2, 1.0))
    told: list[str] = []
    settings = Settings(data_dir=tmp_path, model=ECHO)
    (row,) = await run_chaos(settings, minutes=0.5, people=4, seed=7, postgres=False, tell=told.append)
    counted = (
        "lost",
        "duplicated",
        "gaps",
        "repeats",
        "characters_lost",
        "wrong_answers",
        "stuck",
        "unexpected",
        "died",
        "unclean_ends",
    )
    assert {name: row[name] for name in counted} == dict.fromkeys(counted, 0), told
    assert row["faults"] >= 1
    assert row["sent"] == row["stored"] > 4
    assert row["resumed"] > 0


# --- the count itself can fail ------------------------------------------------------------------------------


class Line:
    """Plays one script an attempt."""

    def __init__(self, *attempts: list[Any]) -> None:
        self._attempts = iter(attempts)

    async def events(self, sent: Sent) -> AsyncGenerator[dict[str, Any]]:
        for event in next(self._attempts):
            if isinstance(event, Exception):
                raise event
            yield event


def event(number: int, kind: str = "response.output_text.delta", delta: str = "x") -> dict[str, Any]:
    ends = {} if kind.endswith("delta") else {"response": {"id": "resp_1"}}
    return {"sequence_number": number, "type": kind, "delta": delta, **ends}


END = "response.completed"


async def said(*attempts: list[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Sent, Counter[str]]:
    monkeypatch.setattr("rallychat.bench.client.AGAIN", (0, 0))
    sent, refusals = Sent("Hi", "key", "conv"), Counter[str]()
    async with httpx.AsyncClient() as http:
        await Talker(Line(*attempts), http, refusals, random.Random(1)).say(sent)
    return sent, refusals


async def test_a_stream_that_is_resumed_well_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [event(0, "response.created"), event(1), Cut("gone")]
    sent, _ = await said(first, [event(2), event(3, END)], monkeypatch=monkeypatch)
    assert (sent.gaps, sent.repeats, sent.resumed, sent.seen, sent.ended) == (0, 0, 1, "xx", END)


async def test_what_is_said_on_the_page_stands_there_once_though_replies_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.bench.client.AGAIN", (0, 0))
    monkeypatch.setattr("rallychat.bench.on_page.LOST", 0.7)
    refusals, conversation, said = Counter[str](), "", []
    async with world(tmp_path) as (http, service):
        for each in (turn_routes, conversation_routes):
            http._transport.app.include_router(each.router(service), prefix="/ui")  # type: ignore[attr-defined]
        me = Talker(OnPage(http, random.Random(1)), http, refusals, random.Random(1))
        for number in range(3):
            said.append(Sent(f"!repeat 2 n{number}", f"key-{number}", conversation))
            await me.say(said[-1])
            conversation = said[-1].conversation
        (only,) = await service.store.list()
        texts = [row.text for row in await service.store.path(only.id)]
    assert texts == [text for sent in said for text in (sent.text, chaos.expected(sent.text))]
    assert [(sent.seen, sent.ended) for sent in said] == [(chaos.expected(sent.text), END) for sent in said]
    assert (refusals, sum(sent.resumed for sent in said) > 0) == ({}, True)


async def test_gaps_and_repeats_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [event(0, "response.created"), event(1), Cut("gone")]
    sent, _ = await said(first, [event(1), event(4), event(5, END)], monkeypatch=monkeypatch)
    assert (sent.gaps, sent.repeats, sent.seen) == (2, 1, "xx")


async def test_a_refusal_that_is_no_wish_to_wait_is_unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = [[Refused(503, "busy")], [Refused(404, "gone")], [event(0, END)]]
    _, refusals = await said(*attempts, monkeypatch=monkeypatch)
    assert refusals == {"503": 1, "404": 1, "unexpected: 404 gone": 1}


@pytest.mark.parametrize("end", [[event(1)], [event(1), Cut("gone")]], ids=["silent", "broken"])
async def test_a_stream_that_breaks_is_counted_and_told_from_a_refusal(
    end: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.bench.client.AGAIN", (0, 0))
    line = Line([Refused(503, "busy")], [event(0, "response.created"), *end], [event(2, END)])
    async with httpx.AsyncClient() as http:
        me = Talker(line, http, refusals := Counter[str](), random.Random(1))
        await me.say(Sent("Hi", "key", "conv"))
    assert (me.broken, refusals) == (1, {"503": 1})


async def test_a_request_that_gets_no_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallychat.bench.client.AGAIN", (0, 0))
    failed, made = httpx.ConnectError("nobody there"), httpx.Response(200, json={"id": "conv_1"})
    answers: Iterator[httpx.ConnectError | httpx.Response] = iter([failed, made])

    def answer(request: httpx.Request) -> httpx.Response:
        found = next(answers)
        if isinstance(found, httpx.Response):
            return found
        raise found

    async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(answer)) as http:
        me = Talker(Line(), http, Counter(), random.Random(1))
        assert (await me.conversation("key"), me.broken) == ("conv_1", 1)


async def test_what_the_server_lost_or_doubled_is_counted() -> None:
    def item(text: str) -> dict[str, Any]:
        said = [{"type": "input_text", "text": text}]
        return {"type": "message", "id": "msg_1", "role": "user", "content": said}

    async def forgetful(scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        items = {"data": [item("!repeat 40 b"), item("!repeat 40 b")], "has_more": False}
        answer = {"output": [{"content": [{"type": "output_text", "text": "b" * 39}]}]}
        listed = {"data": [{"id": "c"}, {"id": "stray"}], "has_more": False}
        told = listed if scope["path"] == "/v1/conversations" else answer
        await JSONResponse(items if scope["path"].endswith("/items") else told)(scope, receive, send)

    sent = [Sent(f"!repeat 40 {name}", "k", "c", f"resp_{name}", seen="b" * 40, ended=END) for name in "ab"]
    async with client(forgetful) as http:  # type: ignore[arg-type]
        row = await chaos._count(http, World([], chaos.SCRIPTED, sent), stuck=0, tell=lambda _: None)
    counted = ("sent", "stored", "lost", "duplicated", "characters_lost", "wrong_answers")
    assert [row[name] for name in counted] == [2, 1, 1, 3, 2, 2]
