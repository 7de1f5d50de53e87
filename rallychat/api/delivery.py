"""Brings a turn's events to a client, as a stream or whole, and calls the turn off when the client is gone.

A stream's headers wait for the first token (or its refusal), so that whatever goes wrong before it is a real
status. Who waits in line for longer than `SOON`, or whose first token takes longer than `KEEPALIVE` (a download, a long
prompt), gets a stream that starts with comments that say what it waits for; from then on an error is an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rallychat.api.chunks import Answer, Chunks
from rallychat.api.errors import CUT_OFF, INTERNAL, Problem, Refusal, problem_of, problem_of_end
from rallychat.api.request_context import log_failure
from rallychat.api.routing import json_response
from rallychat.errors import RallyChatError
from rallychat.messages import Event, Failed, Finished, Loading, Queued, ReasoningDelta, TextDelta

KEEPALIVE = 10.0
"""Seconds of silence after which a comment is sent: well below the 60 s of common proxies."""

SOON = 0.5
"""Seconds within which a place in line is told, and a new one when it has changed."""

CLIENT_GONE = 499
"""nginx's status for a client that hung up; nobody receives it, the log shows it."""


async def whole(receive: Receive, events: AsyncGenerator[Event], *, prompt: str) -> Answer | None:
    """The whole answer; None if the client hung up first, in which case the turn is called off.

    Raises:
        Refusal: the turn failed.
    """
    gone = asyncio.create_task(_hangup(receive))
    gathering = asyncio.create_task(gathered(events, prompt))
    try:
        await asyncio.wait({gone, gathering}, return_when=asyncio.FIRST_COMPLETED)
        return await gathering if gathering.done() else None
    finally:
        await _called_off(gathering)
        await _called_off(gone)


async def gathered(events: AsyncGenerator[Event], prompt: str) -> Answer:
    """The whole answer.

    Raises:
        Refusal: the turn failed.
    """
    text: list[str] = []
    reasoning: list[str] = []
    async with aclosing(events):
        async for event in events:
            match event:
                case TextDelta():
                    text.append(event.text)
                case ReasoningDelta():
                    reasoning.append(event.text)
                case Finished() | Failed():
                    return Answer("".join(text), "".join(reasoning), _complete(event, prompt))
                case _:
                    pass
    raise AssertionError("a turn ends with Finished or Failed")


async def delivered(
    receive: Receive, events: AsyncGenerator[Event], chunks: Chunks, *, stream: bool
) -> Response:
    """An answer as it was asked for: a stream, or whole.

    Raises:
        Refusal: it is to be whole, and the turn failed.
    """
    if stream:
        return EventStream(events, chunks)
    answer = await whole(receive, events, prompt=chunks.prompt)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return json_response(chunks.whole(answer))


class Stream(Response):
    """Server-sent events. A subclass says in `_relay` how they are made."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any], *, keepalive: float = KEEPALIVE) -> None:
        self.status_code = 200
        self.background = None
        # nginx would otherwise hold chunks back until its buffer is full
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events
        self._look = min(SOON, keepalive)
        self._looks = max(1, round(keepalive / self._look))
        self.complete = False
        """The stream came to its proper end."""
        self._begun = False
        self._quiet = 0  # looks since something was sent
        self._waiting_for = "waiting"
        self._place = ""  # in line, where it was not told yet
        self._beginning = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until the turn ends or the client is gone.

        Raises:
            Refusal, RallyChatError: before anything was sent; the app answers with a status.
        """
        gone = asyncio.create_task(_hangup(receive))
        pump = asyncio.create_task(self._pump(send))
        try:
            while not pump.done() and not gone.done():
                done, _ = await asyncio.wait(
                    {gone, pump}, timeout=self._look, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    await self._keep_alive(send)
            if pump.done():
                await pump
        except asyncio.CancelledError:  # the server stops; the client may still hear why
            await _called_off(pump)
            if self._begun:
                await self._fail(CUT_OFF, send)
            raise
        finally:
            await _called_off(pump)
            await _called_off(gone)

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:
                await self._relay(events, send)
        except Exception as exc:
            if not self._begun:
                raise
            await self._fail(_problem(exc), send)

    async def _relay(self, events: AsyncGenerator[Any], send: Send) -> None:
        raise NotImplementedError

    async def _begin(self, send: Send) -> None:
        async with self._beginning:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _keep_alive(self, send: Send) -> None:
        self._quiet += 1
        if self._place or self._quiet >= self._looks:
            await self._begin(send)
            self._quiet, self._place = 0, ""
            said = comment(self._waiting_for)
            await send({"type": "http.response.body", "body": said, "more_body": True})

    async def _fail(self, problem: Problem, send: Send) -> None:
        """An error after the stream began. No end mark follows: the answer is not complete."""
        data = b"data: " + orjson.dumps(problem.body()) + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": False})


class EventStream(Stream):
    """A turn as server-sent events."""

    def __init__(
        self, events: AsyncGenerator[Event], chunks: Chunks, *, keepalive: float = KEEPALIVE
    ) -> None:
        super().__init__(events, keepalive=keepalive)
        self._chunks = chunks

    async def _relay(self, events: AsyncGenerator[Any], send: Send) -> None:
        """The hot path: once per token."""
        delta = self._chunks.delta
        opening = self._chunks.opening()
        async for event in events:
            if type(event) is TextDelta or type(event) is ReasoningDelta:
                data = opening + delta(event)
            elif type(event) is Finished or type(event) is Failed:
                data = opening + self._chunks.closing(_complete(event, self._chunks.prompt))
            else:
                self._waiting_for = described(event)
                self._place = self._waiting_for if type(event) is Queued else ""
                continue
            if not self._begun:
                await self._begin(send)
            opening = b""
            self._quiet = 0
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if type(event) is Finished:
                self.complete = True
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class FrameStream(Stream):
    """Frames of bytes, sent as they come."""

    async def _relay(self, events: AsyncGenerator[bytes], send: Send) -> None:
        async for data in events:
            await self._begin(send)
            self._quiet = 0
            await send({"type": "http.response.body", "body": data, "more_body": True})
        self.complete = True
        await self._begin(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _complete(end: Finished | Failed, prompt: str) -> Finished:
    problem = problem_of_end(end, prompt=prompt)
    if problem is not None or isinstance(end, Failed):
        raise Refusal(problem or CUT_OFF)
    return end


def _problem(exc: Exception) -> Problem:
    match exc:
        case Refusal():
            return exc.problem
        case RallyChatError():
            return problem_of(exc)
        case _:
            log_failure(exc)
            return Problem(500, INTERNAL, RallyChatError.code)


def comment(text: str) -> bytes:
    """A frame that clients skip."""
    return f": {text}\n\n".encode()


def described(event: Event) -> str:
    """What somebody waits for, in the words of a comment."""
    match event:
        case Queued(position, seconds):
            return f"queued, position {position}" + ("" if seconds is None else f", about {seconds:.0f} s")
        case Loading(_, stage, fraction):
            return stage if fraction is None else f"{stage} {fraction:.0%}"
        case _:
            return "waiting"


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _called_off(task: asyncio.Task[Any]) -> None:
    """Ends a task and waits for its cleanup; its outcome was read before, or matters to nobody."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
