"""Told to stop, a server begins nothing new and ends what it has begun: in time, or stored to be continued."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rallychat.chat import ChatService
from rallychat.errors import Stopping
from rallychat.messages import Finished
from tests.api_world import chat, echoing, settings
from tests.test_cli_serve import Server, server


def asked(text: str) -> dict[str, Any]:
    return {"model": "slow", "input": text, "stream": True}


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))


def begun(told: Iterator[dict[str, Any]]) -> str:
    """Reads until the first word; the response's id."""
    first = next(told)
    next(event for event in told if event["type"] == "response.output_text.delta")
    return str(first["response"]["id"])


def processes(at: Server) -> list[psutil.Process]:
    return psutil.Process(at.process.pid).children(recursive=True)


def refusing(at: Server) -> httpx.Response:
    """What /readyz says once the signal has been heard."""
    while (said := httpx.get(f"{at.url}/readyz", timeout=60)).status_code == 200:
        pass
    return said


def test_running_answers_end_and_new_ones_are_sent_away(tmp_path: Path) -> None:
    with server(tmp_path, "slow", "--api-only", "--shutdown-grace", "60") as at:
        with httpx.stream("POST", f"{at.url}/v1/responses", json=asked("!count 500"), timeout=60) as answer:
            told = events(answer)
            begun(told)
            workers = processes(at)
            at.process.send_signal(signal.SIGTERM)
            ready = refusing(at).json()
            late = httpx.post(f"{at.url}/v1/responses", json=asked("Hello"), timeout=60)
            stateless = httpx.post(
                f"{at.url}/v1/chat/completions", json=chat("Hello", model="slow"), timeout=60
            )
            *_, last = told
        assert at.process.wait(60) == 0
    assert (ready["status"], ready["server"]) == (
        "not_ready", {"ok": False, "detail": "The server is stopping."}
    )  # fmt: skip
    for refused in (late, stateless):
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "stopping"
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"].endswith("500")
    assert workers
    assert not any(each.is_running() for each in workers)


async def test_a_second_signal_ends_it_at_once_and_the_answer_can_be_continued(tmp_path: Path) -> None:
    with server(tmp_path, "slow", "--api-only", "--shutdown-grace", "600") as at:
        with httpx.stream("POST", f"{at.url}/v1/responses", json=asked("!count 9000"), timeout=60) as answer:
            told = events(answer)
            response = begun(told)
            at.process.send_signal(signal.SIGTERM)
            refusing(at)
            at.process.send_signal(signal.SIGTERM)
            *_, last = told
        assert at.process.wait(60) == 0
    assert last["type"] == "response.failed"
    seen = last["response"]["output"][0]["content"][0]["text"]
    async with ChatService.open(settings(tmp_path)) as service:
        stored = (await service.store.responses.get(response)).answer
        assert (stored.finish_reason, stored.text) == ("interrupted", seen)
        run = await service.continue_answer(stored.id)
        assert isinstance(await service.stop(run.id), Finished)


def test_without_grace_they_end_at_the_first(tmp_path: Path) -> None:
    with server(tmp_path, "slow", "--api-only", "--shutdown-grace", "0") as at:
        said = chat("!count 9000", model="slow", stream=True)
        with httpx.stream("POST", f"{at.url}/v1/chat/completions", json=said, timeout=60) as answer:
            told = answer.iter_lines()
            next(told)
            at.process.send_signal(signal.SIGINT)
            *_, last = (line for line in told if line)
        assert at.process.wait(60) == 0
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "interrupted"


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_stored_of_what_is_sent_away(tmp_path: Path, stream: bool) -> None:
    async with echoing(tmp_path) as (http, service):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        await service.runs.drain(1)
        body = {"input": "Hello", "conversation": made, "stream": stream}
        refused = await http.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        with pytest.raises(Stopping):
            await service.turn(made, "Hello")
        assert await service.store.path(made) == []
