"""A server that asks everybody who they are, with three people: ada (admin), ben and eve (members)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from argon2 import PasswordHasher

from rallychat.accounts import User, passwords
from rallychat.api import create_app
from rallychat.api.gate import COOKIE
from rallychat.chat import ChatService
from rallychat.identity import acting_as
from tests.api_world import client, settings

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing as it is, with the least work that Argon2 allows."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    passwords._nobody_s.cache_clear()


@dataclass
class World:
    """What the tests hold: the client that is nobody yet, the service, and everybody's cookie."""

    http: httpx.AsyncClient
    service: ChatService
    users: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, *, as_: str | None = None, **given: Any) -> httpx.Response:
        """A request with somebody's cookie, or with none."""
        self.http.cookies.clear()
        headers = dict(given.pop("headers", {}))
        if as_ is not None:
            headers["cookie"] = f"{COOKIE}={self.tokens[as_]}"
        return await self.http.request(method, path, headers=headers, **given)

    async def key(self, of: str, *scopes: str) -> dict[str, str]:
        """The header of a new key of somebody."""
        with acting_as(self.users[of].id):
            secret, _ = await self.service.accounts.create_key("test", scopes=scopes or ("chat",))
        return {"authorization": f"Bearer {secret}"}


@asynccontextmanager
async def people(
    folder: Path, *, mount: bool | Literal["login"] = False, batches: bool = False, **given: Any
) -> AsyncIterator[World]:
    """The world, with the echo engine behind it; with `mount` also its page, or its login alone, with `batches` what
    answers those."""
    async with ChatService.open(settings(folder, auth="required", **given)) as service:
        app = create_app(service, service.settings)
        if mount == "login":
            from rallychat.ui import login_routes

            app.include_router(login_routes.router(service))
        elif mount:
            from rallychat import ui

            ui.mount(app, service)
        working = app.state.batches.running() if batches else nullcontext()
        async with working, client(app, timeout=60) as http:
            world = World(http, service)
            for name, role in (("ada", "admin"), ("ben", "member"), ("eve", "member")):
                user = await service.accounts.add(name, PASSWORD, role=role)  # type: ignore[arg-type]
                world.users[name] = user
                world.tokens[name] = (await service.accounts.enter(user, device="test", address="::1")).token
            yield world
