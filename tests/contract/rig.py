"""A running worker and short ways to say what the contract says about it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.client import EngineClient
from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import (
    CompletionRequest,
    Done,
    EngineEvent,
    EngineInfo,
    Piece,
    Prefill,
    Tokens,
    WorkerSpec,
)

SLOTS = 4
WINDOW = 512


def scripted_spec(**options: Any) -> WorkerSpec:
    return WorkerSpec("echo", "echo", slots=SLOTS, window=WINDOW, options=options, offload_mb=64)


def real_spec(path: Path) -> WorkerSpec:
    return WorkerSpec(
        "llamacpp", "smollm2", path=str(path), slots=SLOTS, window=WINDOW, threads=1, offload_mb=64
    )


def transformers_spec(folder: Path) -> WorkerSpec:
    options = {"device": "cpu", "dtype": "float32", "quantize": "none"}
    return WorkerSpec(
        "transformers",
        folder.name,
        path=str(folder),
        slots=SLOTS,
        window=WINDOW,
        threads=1,
        options=options,
        offload_mb=64,
    )


def spec_of(request: pytest.FixtureRequest, **scripted: Any) -> WorkerSpec:
    """What the parameter of a fixture names."""
    match request.param:
        case "echo":
            return scripted_spec(**scripted)
        case "llamacpp":
            return real_spec(request.getfixturevalue("smollm2_gguf"))
        case "transformers":
            return transformers_spec(request.getfixturevalue("taught_llama"))
        case _:
            return transformers_spec(request.getfixturevalue("smollm2_checkpoint"))


ENGINES = (
    "echo",
    pytest.param("llamacpp", marks=pytest.mark.real),
    pytest.param("transformers", marks=pytest.mark.hf),
    pytest.param("transformers-smollm2", marks=[pytest.mark.hf, pytest.mark.real]),
)


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    text: str
    ids: list[int]
    texts: list[str]
    prefills: list[Prefill]
    done: Done


@dataclass(frozen=True)
class Rig:
    """One worker, for any number of event loops."""

    worker: WorkerProcess
    loop: asyncio.AbstractEventLoop

    @property
    def client(self) -> EngineClient:
        return self.worker.client

    @property
    def info(self) -> EngineInfo:
        return self.worker.info

    async def chat(self, said: str) -> list[int]:
        """The prompt of one user message."""
        pieces = [
            Piece("<|im_start|>user\n"),
            Piece(said, special=False),
            Piece("<|im_end|>\n<|im_start|>assistant\n"),
        ]
        return [token for ids in await self.client.tokenize(pieces) for token in ids]

    async def text(self, text: str) -> list[int]:
        (ids,) = await self.client.tokenize([Piece(text, special=False)])
        return ids

    async def long(self, tokens: int) -> list[int]:
        """A prompt of so many tokens."""
        ids = await self.text("count on words that go on and on\n")
        return (ids * (tokens // len(ids) + 1))[:tokens]

    async def answer(self, prompt: list[int], **options: Any) -> Answer:
        """The whole answer, once there is a free slot for it."""
        async with self.begun(prompt, **options) as stream:
            return gathered([event async for event in stream])

    @asynccontextmanager
    async def begun(self, prompt: list[int], **options: Any) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """An answer that has a slot; leaving the block abandons it."""
        request = CompletionRequest(prompt=prompt, **({"max_tokens": 24, "temperature": 0.0} | options))
        async with aclosing(self.client.generate(request)) as stream:
            yield _with(await anext(stream), stream)


def gathered(events: list[EngineEvent]) -> Answer:
    tokens = [event for event in events if isinstance(event, Tokens)]
    done = events[-1]
    assert isinstance(done, Done)
    return Answer(
        text="".join(event.text for event in tokens),
        ids=[token for event in tokens for token in event.ids],
        texts=[event.text for event in tokens],
        prefills=[event for event in events if isinstance(event, Prefill)],
        done=done,
    )


async def _with(first: EngineEvent, rest: AsyncIterator[EngineEvent]) -> AsyncIterator[EngineEvent]:
    yield first
    async for event in rest:
        yield event


@contextmanager
def rig_of(spec: WorkerSpec, *, stall_timeout: float = 120) -> Iterator[Rig]:
    """A worker watched by a loop of its own, since each test has another."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="worker watch")
    thread.start()
    worker = WorkerProcess(spec, load_timeout=120, stall_timeout=stall_timeout)
    try:
        asyncio.run_coroutine_threadsafe(worker.start(), loop).result()
        yield Rig(worker, loop)
    finally:
        asyncio.run_coroutine_threadsafe(worker.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
