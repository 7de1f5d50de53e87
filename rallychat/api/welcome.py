"""A stream lasts no longer than what let its viewer in: a login that ends and a key that is revoked end it too.

Only the watching ends by this. An answer that is stored goes on; one that is not ends as if its client had left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from starlette.datastructures import Headers
from starlette.types import Message, Send

from rallychat.api.errors import Problem
from rallychat.errors import RallyChatError
from rallychat.identity import Person

LOOK = 2.0
"""Seconds between two looks: each is one read of the database for each stream, whichever process shuts people out."""


class Welcome:
    """What is sent to one person, as long as they may come in.

    Args:
        who: who they are by now, or why they may not come in any more.
        told: the stream's last event says why it ends.
    """

    def __init__(self, send: Send, who: Callable[[], Awaitable[Person | Problem]], *, told: bool) -> None:
        self._send = send
        self._who = who
        self._told = told
        self._looking: asyncio.Task[None] | None = None
        self._over = False

    async def send(self, message: Message) -> None:
        """Sends on, and begins to look where this is a stream that may last."""
        if self._over:
            return
        if message["type"] == "http.response.start" and _is_stream(message):
            self._looking = asyncio.create_task(self._look(), name="look whether a viewer may stay")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._over = True
        await self._send(message)

    async def aclose(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        while not self._over:
            await asyncio.sleep(LOOK)
            try:
                found = await self._who()
            except RallyChatError:  # the database is away, which shuts nobody out
                continue
            if isinstance(found, Problem) and not self._over:
                self._over = True
                said = b"data: " + orjson.dumps(found.body()) + b"\n\n" if self._told else b""
                # with the response at its end, the server tells the route that its client is gone
                await self._send({"type": "http.response.body", "body": said, "more_body": False})


def _is_stream(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream")
