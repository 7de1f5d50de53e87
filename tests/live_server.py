"""A real server on a real socket, for clients that need one: uvicorn in a thread, the echo engine behind it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from rallychat.api import create_app
from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from tests.api_world import settings

SLOW = "delay_ms = 5"
"""Of a model that counts for minutes when told to "!count 1000", so that only a cancel can end it."""


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str
    service: ChatService


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


@contextmanager
def live(folder: Path, **given: Any) -> Iterator[Live]:
    """The API over the echo engine, on a free port, until the block ends."""
    scripted(folder, "slow", SLOW)
    chosen = settings(folder, **given)
    started = threading.Event()
    running: dict[str, Any] = {}
    # with the protocol named: asyncio only then sends small packets at once (40 ms a request otherwise)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    async def main() -> None:
        async with ChatService.open(chosen) as service:
            config = uvicorn.Config(
                create_app(service, chosen), log_config=None, ws="none", timeout_graceful_shutdown=1
            )
            running["service"], running["server"] = service, _Server(config, started.set)
            await running["server"].serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)  # a run of tests always ends
    thread.start()
    try:
        assert started.wait(120), "the server did not start"
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", running["service"])
    finally:
        if "server" in running:
            running["server"].should_exit = True
        thread.join(30)
        listener.close()
