"""A client that gives up nothing: says a message once, whatever happens, and watches the answer to its end.

What it says carries an idempotency key, and what it watches it resumes after the last event it saw. It counts what
should never be: events that are missing, and events that come twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import httpx
import orjson

PATIENCE = 20.0
"""Seconds of silence after which a connection is given up and made anew."""
AGAIN = (0.05, 0.5)
"""Seconds before the next try, at random in between."""
ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Cut(Exception):
    """The connection broke, or was cut on purpose; the next try goes on."""


class Refused(Exception):
    """The server said no, with a status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status} {said}")
        self.status = status


@dataclass(slots=True)
class Sent:
    """A message, and what was seen of its answer."""

    text: str
    key: str
    conversation: str
    response: str = ""
    last: int = -1
    """Number of the last event that was seen."""
    seen: str = ""
    ended: str = ""
    """The type of the last event."""
    usage: dict[str, Any] = field(default_factory=dict)
    gaps: int = 0
    repeats: int = 0
    resumed: int = 0


class Line(Protocol):
    """A way to the server."""

    def events(self, sent: Sent) -> AsyncGenerator[dict[str, Any]]:
        """The events of a message's answer: from the first, or after the last one that was seen."""
        ...


class Plain:
    """HTTP and server-sent events, by hand."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        model: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        self._http = http
        given = {"max_output_tokens": max_tokens, "temperature": temperature}
        self._limit = {name: value for name, value in given.items() if value is not None}
        self._model = model

    async def events(self, sent: Sent) -> AsyncGenerator[dict[str, Any]]:
        """See `Line`."""
        if sent.response:
            query = {"stream": "true"} | ({"starting_after": str(sent.last)} if sent.last >= 0 else {})
            request = self._http.build_request("GET", f"/v1/responses/{sent.response}", params=query)
        else:
            body = {"model": self._model, "input": sent.text, "conversation": sent.conversation}
            request = self._http.build_request(
                "POST",
                "/v1/responses",
                json={**body, "stream": True, **self._limit},
                headers={"Idempotency-Key": sent.key},
            )
        try:
            response = await self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    raise Refused(
                        response.status_code, (await response.aread()).decode(errors="replace")[:200]
                    )
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        yield orjson.loads(line[6:])
            finally:
                await response.aclose()
        except (httpx.HTTPError, orjson.JSONDecodeError) as exc:
            raise Cut(str(exc)) from exc


class Official:
    """OpenAI's own client."""

    def __init__(self, url: str, model: str, *, max_tokens: int | None = None) -> None:
        import openai

        self._limit = max_tokens or openai.omit

        self._errors = (openai.APIError, httpx.HTTPError)
        self._api = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
        self._model = model

    async def events(self, sent: Sent) -> AsyncGenerator[dict[str, Any]]:
        """See `Line`."""
        import openai

        api = self._api.responses
        try:
            if sent.response:
                after = sent.last if sent.last >= 0 else openai.omit
                stream = await api.retrieve(sent.response, stream=True, starting_after=after)
            else:
                stream = await api.create(
                    model=self._model,
                    input=sent.text,
                    conversation=sent.conversation,
                    stream=True,
                    max_output_tokens=self._limit,
                    extra_headers={"Idempotency-Key": sent.key},
                )
            async with stream:
                async for event in stream:
                    yield event.model_dump()
        except openai.APIStatusError as exc:
            raise Refused(exc.status_code, exc.message[:200]) from exc
        except self._errors as exc:
            raise Cut(str(exc)) from exc

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._api.close()


def has_openai() -> bool:
    """OpenAI's client is installed."""
    return find_spec("openai") is not None


class Talker:
    """One person with one connection.

    Args:
        line: how they reach the server.
        http: for what is not a stream.
        refusals: counts what the server refused, by status.
        rng: how long is waited between two tries.
    """

    def __init__(
        self, line: Line, http: httpx.AsyncClient, refusals: Counter[str], rng: random.Random
    ) -> None:
        self._line = line
        self._http = http
        self._refusals = refusals
        self._rng = rng
        self._cut = False
        self.broken = 0
        """Requests and streams that ended early, not counting those of `cut`."""

    def cut(self) -> None:
        """The connection of this moment breaks."""
        self._cut = True

    async def conversation(self, key: str) -> str:
        """A new conversation, made once however often it has to be asked for."""
        while True:
            try:
                made = await self._http.post("/v1/conversations", json={}, headers={"Idempotency-Key": key})
                if made.is_success:
                    return str(made.json()["id"])
                self._refused(made.status_code, made.text)
            except (httpx.HTTPError, ValueError):
                self.broken += 1
            await self._rest()

    async def say(self, sent: Sent) -> None:
        """Says it, and watches until the answer has ended. Never gives up: its caller may cancel it."""
        while not sent.ended:
            self._cut = False
            try:
                async with aclosing(self._line.events(sent)) as events:
                    async for event in events:
                        self._saw(sent, event)
                        if self._cut or sent.ended:
                            break
                self.broken += not (self._cut or sent.ended)
            except Refused as exc:
                self._refused(exc.status, str(exc))
            except Cut:
                self.broken += 1
            if not sent.ended:
                sent.resumed += 1
                await self._rest()

    def _saw(self, sent: Sent, event: dict[str, Any]) -> None:
        number, kind = event.get("sequence_number"), event.get("type", "")
        if not isinstance(number, int):  # an error: the stream is cut off
            raise Cut(str(event)[:200])
        sent.gaps += max(0, number - sent.last - 1)
        if number <= sent.last:
            sent.repeats += 1
            return
        sent.last = number
        if not sent.response and "response" in event:
            sent.response = event["response"]["id"]
        if kind == "response.output_text.delta":
            sent.seen += event["delta"]
        if kind in ENDS:
            sent.ended = kind
            sent.usage = event["response"].get("usage") or {}

    def _refused(self, status: int, said: str) -> None:
        self._refusals[str(status)] += 1
        if status not in (409, 429, 503):
            self._refusals[f"unexpected: {said[:160]}"] += 1

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.uniform(*AGAIN))
