"""Speaks `rallychat.engines.protocol` to one engine: our own worker, or a vLLM server that somebody else runs.

Failures are translated here, by one table; above it only `rallychat.errors` exist.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from rallychat.engines import wire
from rallychat.engines.protocol import (
    CompletionRequest,
    Done,
    EngineEvent,
    EngineInfo,
    Piece,
    Prefill,
    Tokens,
)
from rallychat.errors import (
    Busy,
    ContextOverflow,
    EngineInterrupted,
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    RallyChatError,
)
from rallychat.logs import request_id

_OURS: Final = frozenset({"slot", "said"})
"""Fields of a request that only our own worker knows."""
_FOREIGN_OVERFLOW: Final = re.compile(
    r"maximum context length is (\d+) tokens.*?(\d+) (?:input )?tokens", re.DOTALL
)


class EngineClient:
    """One engine, reached over a Unix socket or at a base URL. Stateless but for what the engine said of itself.

    Args:
        socket: Unix socket of a worker; or give `base_url`.
        base_url: `http://host:port`, with or without a path; the routes are appended.
        key: sent as `Authorization: Bearer`.
        stall_timeout: seconds the engine may send nothing, in none of its answers, before it counts as hung. One
            answer may be silent ten times as long while others go on: it may wait until their prompts are read.
    """

    def __init__(
        self,
        *,
        socket: Path | None = None,
        base_url: str | None = None,
        key: str | None = None,
        stall_timeout: float = 120,
    ) -> None:
        if (socket is None) == (base_url is None):
            raise ValueError("give either socket or base_url")
        self._address = wire.Address(socket=socket) if base_url is None else wire.Address.of_url(base_url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._stall_timeout = stall_timeout
        self._pulse = wire.Pulse()
        """Of its answers alone: what a hung engine's process still replies to other requests is no sign of life."""
        self._info: EngineInfo | None = None
        self._foreign = False
        self._model = ""

    async def info(self) -> EngineInfo:
        """What the engine says of itself; asked once. One without `/info` is taken for a vLLM server."""
        if self._info is None:
            status, answer = await self._ask("GET", "/info", allow=404)
            if status == 404:
                self._foreign = True
                self._info = await self._foreign_info()
            else:
                self._info = EngineInfo.model_validate(answer)
        return self._info

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """The token ids of each piece; nothing is added in front or behind.

        Raises:
            InvalidRequest: a text holds half of a surrogate pair.
            EngineRefused: the engine cannot keep control tokens in a plain piece as text.
        """
        info = await self.info()
        if not self._foreign:
            body = {
                "pieces": [
                    {"text": piece.text, "special": piece.special, "start": piece.start} for piece in pieces
                ]
            }
            _, answer = await self._ask("POST", "/tokenize", body)
            return [list(ids) for ids in answer["tokens"]]
        found = []
        for piece in pieces:
            if not piece.special and any(control in piece.text for control in info.control_tokens):
                raise EngineRefused(f"{info.engine} cannot tokenise control tokens as text.")
            _, answer = await self._ask(
                "POST", "/tokenize", {"prompt": piece.text, "add_special_tokens": False}
            )
            found.append([int(token) for token in answer["tokens"]])
        return found

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of these tokens, control tokens included."""
        _, answer = await self._ask("POST", "/detokenize", {"tokens": list(ids)})
        return str(answer["prompt"])

    async def generate(
        self, request: CompletionRequest, *, session: str | None = None
    ) -> AsyncGenerator[EngineEvent]:
        """Answer a prompt; the last event is Done. Closing the generator cancels within one engine step.

        Args:
            request: the prompt and how to answer it.
            session: an opaque name of the conversation, for routers that keep its cache warm.

        Raises:
            ContextOverflow: the prompt does not fit; nothing was evaluated.
            Busy: no slot is free; nothing was evaluated.
            EngineRefused: the engine rejects the request.
            EngineUnavailable: it cannot be reached.
            EngineInterrupted: it died, failed, or hung during this answer.
        """
        await self.info()
        body = self._body(request)
        headers = {"X-Session-ID": session} if session else {}
        reader = _Reader(warming=request.max_tokens == 0)
        async with self._sent("POST", "/v1/completions", body, headers, pulse=self._pulse) as response:
            async for data in wire.events(response):
                if data == b"[DONE]":
                    break
                for event in reader.read(data):
                    yield event
        if reader.done is None:
            raise EngineInterrupted("The engine ended an answer before it was complete.")
        yield reader.done

    async def save(self, slot: int, name: str, prompt: Sequence[int]) -> tuple[list[str], float]:
        """Copies what a slot's cache holds out of the engine.

        Returns the names of copies that had to go for it, and the seconds it took, the wait for a step left out.

        Args:
            prompt: the tokens that the slot is known to hold.

        Raises:
            EngineRefused: this engine cannot, there is no room, or the slot holds something else.
        """
        _, answer = await self._ask("POST", "/slots/save", {"slot": slot, "name": name, "prompt": prompt})
        return [str(gone) for gone in answer["dropped"]], answer["ms"] / 1000

    async def restore(self, slot: int, name: str, *, cache_salt: str | None) -> float:
        """Brings a copy back into a slot, whose it is by its salt. The copy stays. Returns the seconds, as `save`.

        Raises:
            EngineRefused: there is no such copy, or it cannot be read; the slot may hold nothing then.
        """
        body = {"slot": slot, "name": name, "cache_salt": cache_salt}
        _, answer = await self._ask("POST", "/slots/restore", body)
        return float(answer["ms"] / 1000)

    async def discard(self, names: Sequence[str]) -> None:
        """Deletes copies, as far as they are there."""
        await self._ask("POST", "/slots/discard", {"names": list(names)})

    async def health(self) -> dict[str, Any]:
        """`{"status", "free_slots"}` of a worker of ours; a foreign engine's `/health` has no body.

        Raises:
            EngineUnavailable: it cannot be reached.
            EngineInterrupted: it answers, but not well.
        """
        _, answer = await self._ask("GET", "/health")
        return answer

    async def aclose(self) -> None:
        """Nothing is kept open between requests; here so that callers need not know."""

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        body = request.model_dump(exclude_none=True)
        if self._foreign:  # a vLLM server wants to hear its model's name, and at least one token of it
            body = {name: value for name, value in body.items() if name not in _OURS}
            body |= {"model": request.model or self._model, "max_tokens": max(1, request.max_tokens)}
        return body

    async def _foreign_info(self) -> EngineInfo:
        _, answer = await self._ask("GET", "/v1/models")
        cards = answer.get("data") or [{}]
        self._model, window = str(cards[0].get("id", "")), cards[0].get("max_model_len")
        if not isinstance(window, int):
            raise EngineRefused(
                "The engine's /v1/models does not tell max_model_len.", hint="is it a vLLM server?"
            )
        return EngineInfo(engine="vllm", window=window)

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, allow: int = 200
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with self._sent(method, path, body, {}, allow=allow) as response:
                content = await response.body()
            return response.status, dict(orjson.loads(content)) if response.status == 200 and content else {}
        except (orjson.JSONDecodeError, TypeError, ValueError) as exc:
            raise EngineInterrupted(f"The engine's answer to {path} is not JSON.") from exc

    @asynccontextmanager
    async def _sent(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: Mapping[str, str],
        *,
        allow: int = 200,
        pulse: wire.Pulse | None = None,
    ) -> AsyncGenerator[wire.Response]:
        """A response with status 200 (or `allow`); everything else is raised as one of our errors."""
        try:
            content = b"" if body is None else orjson.dumps(body)
        except TypeError as exc:  # what orjson raises for half of a surrogate pair
            raise InvalidRequest(f"The request cannot be written as JSON: {exc}.") from exc
        sent = wire.request(
            self._address,
            method,
            path,
            body=content,
            headers=self._headers | _ask_as() | dict(headers),
            patience=self._stall_timeout,
            pulse=pulse,
        )
        try:
            async with sent as response:
                if response.status not in (200, allow):
                    raise _refusal(response, await response.body())
                yield response
        except wire.Unreachable as exc:
            raise EngineUnavailable(f"The engine cannot be reached: {exc}.") from exc
        except wire.Stalled as exc:
            raise EngineInterrupted(f"The engine hangs: it was {exc}.", hung=True) from exc
        except wire.WireError as exc:
            raise EngineInterrupted(f"The connection to the engine was lost: {exc}.") from exc


def _ask_as() -> dict[str, str]:
    name = request_id.get()
    return {} if name == "-" else {"X-Request-ID": name}


class _Reader:
    """Reads the chunks of one answer. Written by hand: a model per token would cost more than all the rest."""

    def __init__(self, *, warming: bool) -> None:
        self._warming = warming
        self._reason: str | None = None
        self.done: Done | None = None

    def read(self, data: bytes) -> list[EngineEvent]:
        try:
            return self._read(orjson.loads(data))
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise EngineInterrupted("The engine sent an event that cannot be read.") from exc

    def _read(self, chunk: dict[str, Any]) -> list[EngineEvent]:
        found: list[EngineEvent] = []
        if "error" in chunk:
            raise EngineInterrupted(str(chunk["error"]["message"]))
        for choice in chunk["choices"]:
            text, ids = choice["text"], choice.get("token_ids") or ()
            if (text or ids) and not self._warming:
                found.append(Tokens(text, tuple(ids)))
            self._reason = choice.get("finish_reason") or self._reason
        if progress := chunk.get("prompt_progress"):
            ms = progress.get("ms")
            found.append(Prefill(progress["total"], progress["cached"], progress["processed"], ms))
        if (usage := chunk.get("usage")) and self._reason is not None:
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            reason: Final = "length" if self._reason == "length" else "stop"
            generated = 0 if self._warming else usage["completion_tokens"]
            self.done = Done(reason, usage["prompt_tokens"], generated, cached)
        return found


def _refusal(response: wire.Response, content: bytes) -> RallyChatError:
    """The error a status stands for."""
    error = _error(content)
    message = str(error.get("message") or f"status {response.status}")
    if "needed" in error and "window" in error:
        return ContextOverflow(needed=int(error["needed"]), window=int(error["window"]))
    if response.status == 400 and (found := _FOREIGN_OVERFLOW.search(message)):
        return ContextOverflow(needed=int(found[2]), window=int(found[1]))
    if response.status in (429, 503):
        return Busy(
            f"The engine is busy: {message}", retry_after=_seconds(response.headers.get("retry-after"))
        )
    if response.status in (401, 403):
        return EngineRefused(f"The engine refused the key: {message}", hint="check the engine's API key")
    if 400 <= response.status < 500:
        return EngineRefused(f"The engine rejected the request: {message}", hint=str(error.get("hint") or ""))
    return EngineInterrupted(f"The engine failed: {message}")


def _error(content: bytes) -> dict[str, Any]:
    """The error object of a body, in OpenAI's shape or flat, or empty."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(found, dict):
        return {}
    error = found.get("error", found)
    return error if isinstance(error, dict) else {"message": error}


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 1.0
