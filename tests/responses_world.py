"""What the tests of responses and conversations share: a served echo engine, and how to read a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.messages import TextDelta
from rallychat.runs import Run
from tests.api_world import echoing
from tests.live_server import SLOW

Event = dict[str, Any]
ENDLESS = {"input": "!count 5000", "model": "slow"}
THINKING = """
name = "Thinking echo"
source = "a test"
eos_token = "<|im_end|>"
stop = ["<|im_end|>"]
reasoning = {open = "<think>", close = "</think>"}
template = '''
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}'''
"""
"""A family that thinks aloud when it is told "!say <think>…</think>…"."""


@asynccontextmanager
async def world(folder: Path, **given: Any) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService]]:
    """The API over the echo engine; call it again for what a restart would see."""
    write_models(folder)
    async with echoing(folder, **{"slots": 2, "max_loaded": 3, **given}) as opened:
        yield opened


def write_models(folder: Path) -> None:
    """Beside `echo`: `slow`, and `thinking`, which has reasoning tags."""
    scripted(folder, "slow", SLOW)
    scripted(folder, "thinking", family="thinking")
    families = folder / "catalog" / "families"
    families.mkdir(parents=True, exist_ok=True)
    (families / "thinking.toml").write_text(THINKING)


def events_of(stream: str) -> list[Event]:
    """The events of a stream."""
    frames = [frame.split("\n") for frame in stream.strip().split("\n\n")]
    found = [json.loads(frame[1].removeprefix("data: ")) for frame in frames if len(frame) == 2]
    assert [frame[0] for frame in frames if len(frame) == 2] == [f"event: {event['type']}" for event in found]
    return found


async def told(http: httpx.AsyncClient, response_id: str, **query: Any) -> list[Event]:
    """The events of a stored response."""
    response = await http.get(f"/v1/responses/{response_id}", params={"stream": True, **query})
    assert response.status_code == 200, response.text
    return events_of(response.text)


def text_of(response: Event) -> str:
    """What a response object says."""
    said = [
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    ]
    return "".join(said)


async def asked(http: httpx.AsyncClient, text: str, **more: Any) -> Event:
    """A response to `text`."""
    response = await http.post("/v1/responses", json={"input": text, **more})
    assert response.status_code == 200, response.text
    body: Event = response.json()
    return body


async def items(http: httpx.AsyncClient, conversation_id: str) -> list[str]:
    """The texts of a conversation's items, oldest first."""
    listed = (await http.get(f"/v1/conversations/{conversation_id}/items", params={"order": "asc"})).json()
    return ["".join(part["text"] for part in item["content"]) for item in listed["data"]]


def deltas(events: list[Event]) -> str:
    """What a stream said."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def next_run(service: ChatService) -> asyncio.Future[Run]:
    """The run that is started next."""
    found: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
    start = service.runs.start

    def starting(run: Run) -> Run:
        if not found.done():
            found.set_result(run)
        return start(run)

    service.runs.start = starting  # type: ignore[method-assign]
    return found


async def said_something(run: Run) -> None:
    """Returns once the run has told some words."""
    async with aclosing(run.attach(apart=True)) as events:
        seen = 0
        async for event in events:
            seen += isinstance(event, TextDelta)
            if seen == 3:
                return
