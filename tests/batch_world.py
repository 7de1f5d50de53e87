"""A world for batches: the API over the echo engine with its runner, and the lines people send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from rallychat.api import create_app
from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from tests.api_world import client, settings

CHAT = "/v1/chat/completions"
ENDED = ("failed", "completed", "expired", "cancelled")


def with_slow(folder: Path) -> Path:
    """The model `slow` in a data folder: of `!count 100000` it says no end while a test looks."""
    scripted(folder, "slow", "delay_ms = 10")
    return folder


def line(name: str, text: str = "Hi", *, model: str = "echo", **more: Any) -> dict[str, Any]:
    """A line of a batch file."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body, **more}


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(orjson.dumps(each) + b"\n" for each in lines)


@asynccontextmanager
async def batching(folder: Path, **given: Any) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService]]:
    """The real service with the echo engine behind the real app, whose batches run."""
    async with ChatService.open(settings(folder, **given)) as service:
        app = create_app(service, service.settings)
        async with app.state.batches.running(), client(app, timeout=60) as http:
            yield http, service


async def uploaded(http: httpx.AsyncClient, content: bytes, **form: str) -> str:
    files = {"file": ("lines.jsonl", content)}
    answer = await http.post("/v1/files", files=files, data={"purpose": "batch", **form})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def begun(http: httpx.AsyncClient, content: bytes, **asked: Any) -> dict[str, Any]:
    body = {"input_file_id": await uploaded(http, content), "endpoint": CHAT, "completion_window": "24h"}
    answer = await http.post("/v1/batches", json=body | asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(http: httpx.AsyncClient, batch: dict[str, Any], *, patience: float = 60) -> dict[str, Any]:
    """The batch when it has ended."""
    return await seen(http, batch, lambda it: it["status"] in ENDED, patience=patience)


async def seen(
    http: httpx.AsyncClient,
    batch: dict[str, Any],
    right: Callable[[dict[str, Any]], bool],
    *,
    patience: float = 60,
) -> dict[str, Any]:
    """The batch as soon as it is as it should be."""
    last = time.monotonic() + patience
    while True:
        found: dict[str, Any] = (await http.get(f"/v1/batches/{batch['id']}")).json()
        if right(found):
            return found
        assert time.monotonic() < last, found
        await asyncio.sleep(0.02)


async def until(right: Callable[[], bool], *, patience: float = 60) -> None:
    """Waits for something that only looking can tell."""
    last = time.monotonic() + patience
    while not right():
        assert time.monotonic() < last
        await asyncio.sleep(0.01)


async def content(http: httpx.AsyncClient, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    answer = await http.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return [orjson.loads(text) for text in answer.content.splitlines()]
