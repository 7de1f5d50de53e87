"""A stream lasts no longer than what let its viewer in: a login that ends and a key that is revoked end it too.

An answer that is given whole is not delivered either, to whom would not be let in any more by then. Only the watching
ends by this. An answer that is stored goes on; one that is not ends as if its client had left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rallychat.api.errors import Problem
from rallychat.api.request_context import is_ours
from rallychat.api.scopes import scope_of
from rallychat.errors import RallyChatError
from rallychat.identity import Person

LOOK = 2.0
"""Seconds between two looks: each is one read of the database for all the streams that one login or key let in,
whichever process shuts people out."""

Who = Callable[[], Awaitable[Person | Problem]]
"""Who somebody is by now, or why they may not come in any more."""


class Watch:
    """Looks whether they may stay who watch streams that the same login or key let in.

    Args:
        among: all that look; this one is there as long as another stream can join it.
        by: what let them in.
    """

    def __init__(self, who: Who, among: dict[Hashable, Watch], by: Hashable) -> None:
        self._who = who
        self._among = among
        self._by = by
        self._streams: set[Welcome] = set()
        self._task: asyncio.Task[None] | None = None

    def join(self, stream: Welcome) -> None:
        """Looks for this stream, too."""
        self._streams.add(stream)
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name="look whether viewers may stay")

    async def leave(self, stream: Welcome) -> None:
        """Looks no more when the last has left."""
        self._streams.discard(stream)
        if not self._streams and self._task is not None:
            self._close()
            self._task.cancel()
            await asyncio.wait({self._task})

    def _close(self) -> None:
        if self._among.get(self._by) is self:
            del self._among[self._by]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                found = await self._who()
            except RallyChatError:  # the database is away, which shuts nobody out
                continue
            if isinstance(found, Problem):
                self._close()
                await asyncio.gather(*(stream.end(found) for stream in self._streams), return_exceptions=True)
                return


class Welcome:
    """What is sent to one person, as long as they may come in.

    Args:
        watches: all that look.
        by: id of the login or key that let this person in.
        refuse: how they are told that they may not come in.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        watches: dict[Hashable, Watch],
        by: str,
        who: Who,
        refuse: Callable[[Problem], ASGIApp],
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._watches = watches
        self._by = (by, scope_of(scope["path"]))
        self._who = who
        self._refuse = refuse
        self._answers = scope["method"] == "POST" and scope_of(scope["path"]) == "chat"
        self._watch: Watch | None = None
        self._over = False

    async def send(self, message: Message) -> None:
        """Sends on; looks once before a whole answer, and again and again where this is a stream."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            if _is_stream(message):
                self._watch = self._watches.setdefault(self._by, Watch(self._who, self._watches, self._by))
                self._watch.join(self)
            elif self._answers and (problem := await self._shut_out()) is not None:
                self._over = True
                await self._refuse(problem)(self._scope, self._receive, self._send)
                return
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._over = True
        await self._send(message)

    async def end(self, problem: Problem) -> None:
        """Ends the stream; the API's tell why in their last event."""
        if self._over:
            return
        self._over = True
        said = b"data: " + orjson.dumps(problem.body()) + b"\n\n" if is_ours(self._scope["path"]) else b""
        # with the response at its end, the server tells the route that its client is gone
        await self._send({"type": "http.response.body", "body": said, "more_body": False})

    async def aclose(self) -> None:
        """Looks no more."""
        if self._watch is not None:
            await self._watch.leave(self)

    async def _shut_out(self) -> Problem | None:
        try:
            found = await self._who()
        except RallyChatError:  # as above
            return None
        return found if isinstance(found, Problem) else None


def _is_stream(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream")
