"""The field `timeout`: a request that waits in line is told in time that its turn did not come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.api import delivery
from rallychat.identity import acting_as
from rallychat.pool import Engine
from tests.batch_world import batching, begun, content, ended, jsonl, line
from tests.responses_world import events_of, world

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"model": "echo", "prompt": "Hi"}),
    ("/v1/responses", {"model": "echo", "input": "Hi"}),
    ("/v1/responses", {"model": "echo", "input": "Hi", "store": False}),
]


@asynccontextmanager
async def taken(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """Somebody else has the only slot."""
    async with world(folder, slots=1) as (http, service):
        await service.load("echo")
        engine = await service.pool.open(service.resolve("echo"))
        with acting_as("another"):
            async with engine.slot([1]):
                yield http, engine


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_turn_that_does_not_come_in_time_is_told_with_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], stream: bool
) -> None:
    monkeypatch.setattr(delivery, "SOON", 60.0)  # no stream begins with its place in line
    async with taken(tmp_path) as (http, engine):
        answer = await http.post(path, json=body | {"timeout": 0.5, "stream": stream})
        if path == "/v1/responses" and stream:  # has begun to tell of itself
            *_, last = events_of(answer.text)
            assert (last["type"], engine.queue.waiting) == ("response.failed", 0)
            assert "within 0.5 s, which is its timeout" in last["response"]["error"]["message"]
            return
        assert answer.status_code == 503, answer.text
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("queue_timeout", "server_error")
        assert "within 0.5 s, which is its timeout" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "false"
        assert engine.queue.waiting == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_turn_that_cannot_come_in_time_is_refused_at_once(
    tmp_path: Path, path: str, body: dict[str, Any], stream: bool
) -> None:
    async with taken(tmp_path) as (http, engine):
        engine.queue._pace.answered(5000.0, 10)
        answer = await http.post(path, json=body | {"timeout": 600, "stream": stream})
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "queue_timeout"
        assert int(answer.headers["retry-after"]) > 600
        assert engine.queue.waiting == 0


async def test_a_response_nobody_watches_fails_when_its_turn_did_not_come(tmp_path: Path) -> None:
    body = {"model": "echo", "input": "Hi", "background": True, "timeout": 0.5}
    async with taken(tmp_path) as (http, _):
        made = (await http.post("/v1/responses", json=body)).json()
        assert made["status"] == "queued"
        seen = made
        async with asyncio.timeout(60):
            while seen["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.01)
                seen = (await http.get(f"/v1/responses/{made['id']}")).json()
    assert seen["status"] == "failed"
    assert seen["error"]["code"] == "rate_limit_exceeded"
    assert "within 0.5 s, which is its timeout" in seen["error"]["message"]


async def test_a_turn_that_comes_in_time_is_answered_to_its_end(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        asked = CHAT | {"timeout": 600, "messages": [{"role": "user", "content": "!count 30"}]}
        answer = await http.post("/v1/chat/completions", json=asked)
    assert answer.json()["choices"][0]["message"]["content"].endswith("29 30")


async def test_a_response_that_is_cancelled_while_it_waits_leaves_the_line(tmp_path: Path) -> None:
    body = {"model": "echo", "input": "Hi", "background": True, "timeout": 600}
    async with taken(tmp_path) as (http, engine):
        made = (await http.post("/v1/responses", json=body)).json()
        while not engine.queue.waiting:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        ended = (await http.post(f"/v1/responses/{made['id']}/cancel")).json()
        assert (ended["status"], engine.queue.waiting) == ("cancelled", 0)


@pytest.mark.parametrize("wrong", [0, -1, 86401, "soon", True])
@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_timeout_that_is_none_is_refused_by_name(
    tmp_path: Path, path: str, body: dict[str, Any], wrong: object
) -> None:
    async with world(tmp_path) as (http, _):
        answer = await http.post(path, json=body | {"timeout": wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "timeout")


async def test_a_line_of_a_batch_has_no_timeout_for_it_waits_for_its_turn(tmp_path: Path) -> None:
    lines = [line("1"), line("2", body=CHAT | {"timeout": 5})]
    async with batching(tmp_path) as (http, _):
        done = await ended(http, await begun(http, jsonl(lines)))
        assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        (error,) = await content(http, done["error_file_id"])
    assert error["response"]["body"]["error"]["param"] == "timeout"
