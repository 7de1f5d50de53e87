"""The API's test world: a service that plays a script, and an app over it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI

from rallychat.api import create_app
from rallychat.catalog import Catalog, Sampling
from rallychat.chat import ChatService
from rallychat.messages import ContextReport, Event, Finished, Message, Started, TextDelta, Usage
from rallychat.pool import Priority
from rallychat.settings import Settings

HOST = "http://127.0.0.1:7860"
STARTED = Started(ContextReport("full", window=2048, budget=2048, prompt_tokens=5))
FINISHED = Finished("stop", Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3))
ANY = Sampling()
Play = Callable[[], AsyncGenerator[Event, None]]


async def said(*events: Event) -> AsyncGenerator[Event, None]:
    """The events, one after the other."""
    for event in events:
        yield event


class NoAccounts:
    """Nobody has an account."""

    async def login_needed(self) -> bool:
        return False


class Scripted:
    """Answers every request with the same script, and remembers what it was asked."""

    def __init__(self, settings: Settings, play: Play) -> None:
        self.settings = settings
        self.accounts = NoAccounts()
        self.catalog = Catalog.load(settings)
        self.asked: list[tuple[Any, str | None, Sampling]] = []
        self._play = play

    def resolve(self, name: str | None) -> Any:
        return self.catalog.resolve(name or self.settings.model)

    def named(self, name: str | None) -> Any:
        return self.resolve(None) if name is None else self.catalog.find(name)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        priority: Priority = Priority.CHAT,
        patience: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        self.asked.append((list(messages), model, sampling))
        return self._play()

    def complete_prompt(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        priority: Priority = Priority.CHAT,
        patience: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        self.asked.append((prompt, model, sampling))
        return self._play()


def settings(folder: Path, **given: Any) -> Settings:
    return Settings(**{"data_dir": folder, "model": "echo", **given})


def scripted(folder: Path, *events: Event, **given: Any) -> tuple[FastAPI, Scripted]:
    """An app whose every answer is `events` (by default "Hello there.")."""
    chosen = events or (STARTED, TextDelta("Hello"), TextDelta(" there."), FINISHED)
    service = Scripted(settings(folder, **given), lambda: said(*chosen))
    return create_app(cast(ChatService, service), service.settings), service


@asynccontextmanager
async def client(app: FastAPI, **given: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=HOST, **given) as opened:
        yield opened


def chat(text: str = "Hi", **more: Any) -> dict[str, Any]:
    """The smallest chat request."""
    return {"messages": [{"role": "user", "content": text}], **more}


@asynccontextmanager
async def echoing(folder: Path, **given: Any) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService]]:
    """The real service with the echo engine behind the real app."""
    async with ChatService.open(settings(folder, **given)) as service:
        async with client(create_app(service, service.settings), timeout=60) as http:
            yield http, service
