"""What a benchmark compares: arms that answer the same prompts, each in processes of its own."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, Protocol

import orjson

from rallychat.bench.server import ServerProcess, running
from rallychat.engines import wire
from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings

_TEXT = re.compile(rb'"(?:reasoning_)?content":"[^"]')
"""In a chunk that says something, be it thought or answered."""


@dataclass(frozen=True, slots=True)
class Round:
    """All users answered once: tokens in all, seconds in all, seconds to each user's first token."""

    tokens: int
    seconds: float
    first: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The same prompt as messages for the service and as ids for an engine."""

    messages: list[dict[str, str]]
    ids: list[int]


class Arm(Protocol):
    """One way to answer."""

    name: str

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        """Each prompt is one user's; all ask at the same time."""
        ...


class Service:
    """RallyChat as its clients see it: the HTTP API, streamed."""

    name = "rallychat"

    def __init__(self, address: wire.Address, model: str) -> None:
        self._address = address
        self._model = model

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        """See `Arm`."""
        began = time.monotonic()
        done = await asyncio.gather(*(self._one(prompt, max_tokens) for prompt in prompts))
        return Round(sum(t for t, _ in done), time.monotonic() - began, tuple(f for _, f in done))

    async def _one(self, prompt: Prompt, max_tokens: int) -> tuple[int, float]:
        body = {
            "model": self._model,
            "messages": prompt.messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.monotonic()
        first = 0.0
        tokens = 0
        # The lightest client there is: the one that measures must not take the time it measures.
        path = "/v1/chat/completions"
        event = b""
        async with wire.request(
            self._address, "POST", path, body=orjson.dumps(body), patience=600
        ) as response:
            if response.status != HTTPStatus.OK:
                raise EngineUnavailable(f"The service answered {response.status}: {await response.body()!r}")
            async for event in wire.events(response):
                if not first and _TEXT.search(event):
                    first = time.monotonic() - began
                if b'"usage":{' in event:
                    tokens = orjson.loads(event)["usage"]["completion_tokens"]
        if not first or not tokens:  # else it would count as the quickest of all
            raise EngineUnavailable(
                f"The service's answer ended without a token, or amid them: {event[:200]!r}"
            )
        return tokens, first


class Child:
    """A process that answers JSON lines (`rallychat.bench.raw`, `rallychat.bench.threads`)."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        """See `Arm`."""
        job = {"prompts": [prompt.ids for prompt in prompts], "max_tokens": max_tokens}
        report = await ask(self._process, job)
        if not all(report["first"]):
            raise EngineUnavailable(f"{self.name}: an answer ended without a token.")
        return Round(report["tokens"], report["seconds"], tuple(report["first"]))


async def ask(process: asyncio.subprocess.Process, line: dict[str, Any]) -> dict[str, Any]:
    """One JSON line there, one back."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(line).encode() + b"\n")
    await process.stdin.drain()
    answer = await process.stdout.readline()
    if not answer:
        raise EngineUnavailable("A benchmark's comparison process ended; its error stands above.")
    found: dict[str, Any] = json.loads(answer)
    return found


@asynccontextmanager
async def child(name: str, module: str, spec: WorkerSpec) -> AsyncIterator[Child]:
    """A comparison process with its weights loaded, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        await ask(process, asdict(spec))
        yield Child(name, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def service(settings: Settings, model: str, arguments: Sequence[str]) -> AsyncIterator[Service]:
    """A RallyChat server of its own with the model loaded, until the block ends."""
    async with running(ServerProcess(settings, model, arguments=arguments)) as server:
        yield Service(wire.Address.of_url(server.url), model)


def has_torch() -> bool:
    """The 2023 way can be compared with: torch, transformers, accelerate and gguf are installed."""
    return all(find_spec(name) is not None for name in ("torch", "transformers", "gguf", "accelerate"))
