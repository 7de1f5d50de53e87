"""The worker's HTTP face: an ASGI application over one backend. What is the same for every engine is here."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Final, TypeVar, assert_never

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.engines.backend import Backend, BackendEvent, Step
from rallychat.engines.offload import Offloaded
from rallychat.engines.protocol import CompletionRequest, Done, Piece, Prefill
from rallychat.engines.slots import Slot, Slots
from rallychat.engines.stops import StopStrings
from rallychat.errors import (
    Busy,
    ContextOverflow,
    EngineRefused,
    InvalidRequest,
    NotFound,
    RallyChatError,
)
from rallychat.logs import request_id

log = logging.getLogger(__name__)

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Headers = Sequence[tuple[bytes, bytes]]
_T = TypeVar("_T", bound=BaseModel)

_MAX_BODY: Final = 64 * 1024 * 1024
_JSON: Final = [(b"content-type", b"application/json")]
_EVENTS: Final = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]


class _PieceBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    special: bool = True
    start: bool = False


class _TokenizeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = ""
    prompt: str | None = None
    add_special_tokens: bool = False
    pieces: list[_PieceBody] | None = Field(None, max_length=65_536)


class _DetokenizeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = ""
    tokens: list[int]


class _CopyBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    slot: int
    name: str = Field(pattern="^[0-9a-z]{1,64}$")


class _SaveBody(_CopyBody):
    prompt: list[int]


class _RestoreBody(_CopyBody):
    cache_salt: str | None = None


class _DiscardBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    names: list[str]


class Serving:
    """The ASGI application. Anything but HTTP is not answered.

    Args:
        offload: bytes of caches that may be kept outside the engine.
    """

    def __init__(
        self, backend: Backend, *, model: str, slots: int, key: str | None, offload: int = 0
    ) -> None:
        self._backend = backend
        self._model = model
        self._slots = Slots(slots)
        self._offloaded = Offloaded(backend, self._slots, most=offload)
        self._key = key

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Answer one request; a failure becomes a response or, once streaming, an event."""
        assert scope["type"] == "http"
        named = dict(scope["headers"]).get(b"x-request-id", b"-").decode("latin-1")
        request_id.set(named)  # each request is served in a task of its own
        try:
            self._authorise(scope)
            body = await _read(receive)
            match scope["method"], scope["path"]:
                case "GET", "/health":
                    await _reply(send, 200, {"status": "ok", "free_slots": self._slots.free})
                case "GET", "/info":
                    await _reply(send, 200, self._backend.info.model_dump())
                case "GET", "/v1/models":
                    card = {"id": self._model, "object": "model", "max_model_len": self._backend.info.window}
                    await _reply(send, 200, {"object": "list", "data": [card]})
                case "POST", "/tokenize":
                    await _reply(send, 200, await self._tokenize(_parse(_TokenizeBody, body)))
                case "POST", "/detokenize":
                    ids = self._valid_ids(_parse(_DetokenizeBody, body).tokens, param="tokens")
                    await _reply(send, 200, {"prompt": await self._backend.detokenize(ids)})
                case "POST", "/v1/completions":
                    await self._complete(_parse(CompletionRequest, body), receive, send)
                case "POST", "/slots/save":
                    save = _parse(_SaveBody, body)
                    dropped, ms = await self._offloaded.save(save.slot, save.name, save.prompt)
                    await _reply(send, 200, {"dropped": dropped, "ms": ms})
                case "POST", "/slots/restore":
                    back = _parse(_RestoreBody, body)
                    ms = await self._offloaded.restore(back.slot, back.name, salt=back.cache_salt)
                    await _reply(send, 200, {"ms": ms})
                case "POST", "/slots/discard":
                    self._offloaded.discard(_parse(_DiscardBody, body).names)
                    await _reply(send, 200, {})
                case method, path:
                    raise NotFound("route", f"{method} {path}")
        except RallyChatError as exc:
            await _reply(send, _status(exc), {"error": _error(exc)}, _retry_after(exc))

    def _authorise(self, scope: MutableMapping[str, Any]) -> None:
        if (
            self._key is not None
            and dict(scope["headers"]).get(b"authorization") != f"Bearer {self._key}".encode()
        ):
            raise _Unauthorised("This engine wants its key.")

    def _valid_ids(self, ids: list[int], *, param: str) -> list[int]:
        wrong = next((token for token in ids if not 0 <= token < self._backend.vocabulary), None)
        if wrong is not None:
            last = self._backend.vocabulary - 1
            raise InvalidRequest(
                f"There is no token {wrong}: this model's tokens are 0 to {last}.", param=param
            )
        return ids

    async def _tokenize(self, body: _TokenizeBody) -> dict[str, Any]:
        if body.pieces is not None:
            pieces = [Piece(piece.text, piece.special, piece.start) for piece in body.pieces]
            return {"tokens": await self._backend.tokenize(pieces)}
        if body.prompt is None:
            raise InvalidRequest("Give 'prompt' or 'pieces'.", param="prompt")
        if body.add_special_tokens:
            raise InvalidRequest("Nothing is added to a prompt here.", param="add_special_tokens")
        (ids,) = await self._backend.tokenize([Piece(body.prompt, start=True)])
        return {"tokens": ids, "count": len(ids), "max_model_len": self._backend.info.window}

    async def _complete(self, request: CompletionRequest, receive: _Receive, send: _Send) -> None:
        request = self._admissible(request)
        began = time.monotonic()
        streaming = asyncio.ensure_future(self._stream(request, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            streaming.cancel()
            await asyncio.wait({streaming})
            ms = round((time.monotonic() - began) * 1000, 1)
            how = "left" if streaming.cancelled() else "done"
            log.info("%d tokens asked: %s in %.1f ms", len(request.prompt), how, ms, extra={"ms": ms})
        if not streaming.cancelled():
            streaming.result()

    async def _stream(self, request: CompletionRequest, send: _Send) -> None:
        slot = await self._slots.reserve(request.prompt, request.slot, salt=request.cache_salt)
        await _Answer(self._backend, self._slots, request, slot).stream(send)

    def _admissible(self, request: CompletionRequest) -> CompletionRequest:
        """The request, its answer limited to the window. Raises before anything is evaluated."""
        if not request.stream:
            raise InvalidRequest("This engine only streams.", param="stream")
        if not request.prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        self._valid_ids(request.prompt, param="prompt")
        if request.said >= len(request.prompt):
            raise InvalidRequest("No answer goes on without a prompt before it.", param="said")
        window = self._backend.info.window
        room = window - len(request.prompt)
        if room < 1:
            raise ContextOverflow(needed=len(request.prompt) + 1, window=window)
        return request.model_copy(update={"max_tokens": min(request.max_tokens, room)})


class _Answer:
    """One streamed answer, from its slot to the wire."""

    def __init__(self, backend: Backend, slots: Slots, request: CompletionRequest, slot: Slot) -> None:
        self._backend = backend
        self._slots = slots
        self._request = request
        self._slot = slot
        self._stops = StopStrings(request.stop)
        self._ends = frozenset(request.stop_token_ids)
        self._held: list[int] = list(slot.held)
        self._cached = 0
        self._exact = True
        self._begun = False

    async def stream(self, send: _Send) -> None:
        """Send the answer. The slot is free when this ends, however it ends."""
        started = False
        try:
            async with aclosing(self._events()) as chunks:
                async for chunk in chunks:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                        started = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except RallyChatError as exc:
            if not started:
                raise
            await send(_last(b"data: " + orjson.dumps({"error": _error(exc)}) + b"\n\n"))
        else:
            await send(_last(b"data: [DONE]\n\n"))
        finally:
            self._slots.release(self._slot, self._held, begun=self._begun)

    async def _events(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._backend.generate(self._request, self._slot)) as events:
            async for event in events:
                self._begun = True
                if isinstance(event, Step) and not self._ends.isdisjoint(event.ids):
                    last, done = await self._ended(event)
                    yield self._encode(last)
                    if not self._stops.found:
                        yield self._encode(done)
                    return
                yield self._encode(event)
                if self._stops.found:
                    return

    async def _ended(self, step: Step) -> tuple[Step, Done]:
        """A step with a token that ends the answer: what comes before that token, and the end."""
        at = next(at for at, token in enumerate(step.ids) if token in self._ends)
        text = await self._backend.detokenize(step.ids[:at]) if at else ""
        count = step.count - len(step.ids) + at
        text = step.text[: len(text)] if step.text.startswith(text) else step.text
        prompt = len(self._request.prompt)
        return Step(text, step.ids[:at], count), Done("stop", prompt, count, self._cached)

    def _encode(self, event: BackendEvent) -> bytes:
        match event:
            case Prefill():
                self._cached = event.cached
                self._held = self._request.prompt[: event.processed]
                return _data({"choices": [], "prompt_progress": asdict(event)})
            case Step():
                self._remember(event)
                text = self._stops.feed(event.text)
                sent = _step(text, event.ids)
                if not self._stops.found:
                    return sent
                prompt = len(self._request.prompt)
                return sent + _ending(Done("stop", prompt, event.count, self._cached))
            case Done():
                rest = self._stops.flush()
                return (_step(rest, ()) if rest else b"") + _ending(event)
            case _:
                assert_never(event)

    def _remember(self, step: Step) -> None:
        """What the slot's cache holds: only as far as it is known."""
        self._exact = self._exact and bool(step.ids)
        if self._exact:
            self._held.extend(step.ids)


class _Unauthorised(EngineRefused):
    code = "unauthorised"


_STATUS: Final[dict[type[RallyChatError], int]] = {
    _Unauthorised: 401,
    InvalidRequest: 400,
    EngineRefused: 400,
    NotFound: 404,
    Busy: 503,
}


def _status(exc: RallyChatError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(exc, kind)), 500)


def _retry_after(exc: RallyChatError) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", str(math.ceil(exc.retry_after)).encode())] if isinstance(exc, Busy) else []


def _error(exc: RallyChatError) -> dict[str, Any]:
    error: dict[str, Any] = {"message": exc.message, "code": exc.code, "hint": exc.hint}
    if isinstance(exc, InvalidRequest):
        error["param"] = exc.param
    if isinstance(exc, ContextOverflow):
        error |= {"needed": exc.needed, "window": exc.window}
    return error


def _parse(model: type[_T], body: bytes) -> _T:
    try:
        return model.model_validate(orjson.loads(body))
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"'{name}': {first['msg']}.", param=name) from exc
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"The body is not JSON: {exc}.") from exc


async def _read(receive: _Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("The client left before it had sent its request.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MAX_BODY:
            raise InvalidRequest(f"The body is larger than {_MAX_BODY} bytes.")
        more = message.get("more_body", False)
    return b"".join(parts)


async def _gone(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: _Send, status: int, body: dict[str, Any], headers: _Headers = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*_JSON, *headers]})
    await send({"type": "http.response.body", "body": orjson.dumps(body)})


def _last(body: bytes) -> _Message:
    return {"type": "http.response.body", "body": body, "more_body": False}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _step(text: str, ids: tuple[int, ...]) -> bytes:
    return _data({"choices": [{"index": 0, "text": text, "token_ids": ids, "finish_reason": None}]})


def _ending(done: Done) -> bytes:
    choice = {"index": 0, "text": "", "token_ids": (), "finish_reason": done.reason}
    usage = {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
    return _data({"choices": [choice]}) + _data({"choices": [], "usage": usage})
