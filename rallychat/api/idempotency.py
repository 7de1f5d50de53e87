"""Idempotency keys: a request that is sent again with its key gets the first one's answer, not a second run.

Two ways. An answer that is stored as a response, or as a turn of the page, is found by its id, from the moment it
begins: whoever comes with the key sees that one, growing or whole. Any other answer is kept as the bytes that were
sent; whoever comes while they are being made waits for them. Only what succeeded is kept: after an error the key is
free again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import Header, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rallychat.api.delivery import Stream
from rallychat.api.errors import Problem, Refusal
from rallychat.api.routing import JsonRoute
from rallychat.api.serving import service_of
from rallychat.errors import Conflict, KeyInUse, KeyReused
from rallychat.identity import current

if TYPE_CHECKING:
    from rallychat.store import KeyStore
    from rallychat.store.idempotency import Claim

_FORM = r"^[\x21-\x7e]{1,255}$"
IdempotencyKey = Annotated[
    str | None,
    Header(pattern=_FORM, description="The same key and body within 24 hours: the same answer, not another."),
]
"""A parameter of every route that creates something; `KeyedRoute` reads it."""

_REPLAYED = "idempotent-replayed"
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class KeyedRoute(JsonRoute):
    """A route that knows idempotency keys, if its function takes one; any other POST refuses them by name."""

    reads_itself = False
    """Its function reads the body, and sees to the key with `answered_once`."""

    def get_route_handler(self) -> _Handler:
        """The handler FastAPI calls."""
        handler = super().get_route_handler()
        if takes_key(self):
            return handler if self.reads_itself else keyed(handler)
        return _without(handler) if "POST" in (self.methods or ()) else handler


class StatefulRoute(KeyedRoute):
    """A route that also refuses query parameters it does not know, by name."""

    def get_route_handler(self) -> _Handler:
        """The handler FastAPI calls."""
        handler = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def handle(request: Request) -> Response:
            for name in request.query_params:
                if name not in known:
                    message = f"'{name[:300]}' is not a parameter of this route."
                    raise Refusal(Problem(400, message, "unknown_parameter", name[:300]))
            return await handler(request)

        return handle


class UploadRoute(StatefulRoute):
    """A route whose body is too long to be held."""

    reads_itself = True


def takes_key(route: APIRoute) -> bool:
    """Whether the function of a route has the parameter."""
    return any(field.alias == "idempotency-key" for field in route.dependant.header_params)


def keyed(handler: _Handler) -> _Handler:
    """The handler, of whose requests with one key the first is answered, and the others with it."""

    async def handle(request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if not re.fullmatch(_FORM, key):
            return await handler(request)
        body = await request.body()
        again = Request(request.scope, _read_again(body, request.receive))
        fingerprint = fingerprint_of(request, body)
        return await answered_once(request, key, fingerprint, lambda: handler(again))

    return handle


def _without(handler: _Handler) -> _Handler:
    async def handle(request: Request) -> Response:
        if "idempotency-key" in request.headers:
            message = "This route takes no 'Idempotency-Key'."
            raise Refusal(Problem(400, message, "unknown_parameter", "idempotency-key"))
        return await handler(request)

    return handle


def key_of(request: Request) -> str | None:
    """The key that this request has taken."""
    taken = request.scope.get("rallychat.key")
    return taken.key if isinstance(taken, _Taken) else None


def response_of(request: Request) -> str | None:
    """The response that this request's key leads to."""
    found: str | None = request.scope.get("rallychat.response")
    return found


def announce(request: Request) -> None:
    """The key now leads to a response. Others who come with it still wait until it has begun, or has been undone."""
    taken = request.scope.get("rallychat.key")
    if isinstance(taken, _Taken):
        taken.announced = True


@dataclass(slots=True)
class _Taken:
    """A key that one request of this process is busy with; others wait for `gone`."""

    user: str
    key: str
    fingerprint: str
    pending: MutableMapping[tuple[str, str], _Taken]
    gone: asyncio.Event
    announced: bool = False

    def leave(self) -> None:
        """Lets the others look."""
        if self.pending.get((self.user, self.key)) is self:
            del self.pending[self.user, self.key]
        self.gone.set()


async def answered_once(
    request: Request, key: str, fingerprint: str, answer: Callable[[], Coroutine[Any, Any, Response]]
) -> Response:
    """The answer to the first request of this key, which must have had the same fingerprint."""
    scope = request.scope
    keys = service_of(request).store.keys
    taken = await _turn(scope["app"].state.pending_keys, key, fingerprint)
    try:
        claim = await _claimed(request, keys, key, fingerprint)
        if claim is not None and claim.response_id is None:
            taken.leave()
            return _kept(claim)
        if claim is not None:
            taken.leave()
            scope["rallychat.response"] = claim.response_id
            response = await answer()
            response.headers[_REPLAYED] = "true"
            return response
    except BaseException:
        taken.leave()
        raise
    scope["rallychat.key"] = taken
    try:
        response = await answer()
    except BaseException as exc:  # whoever left: an answer that has begun is there, but where it is refused
        await _freed(keys, taken, undone=isinstance(exc, Refusal))
        raise
    if taken.announced:
        taken.leave()
        return response
    return _Recorded(response, keys, taken)


async def _turn(pending: MutableMapping[tuple[str, str], _Taken], key: str, fingerprint: str) -> _Taken:
    user = current().id
    while (other := pending.get((user, key))) is not None:
        _check(key, other.fingerprint, fingerprint)
        await other.gone.wait()
    taken = pending[user, key] = _Taken(user, key, fingerprint, pending, asyncio.Event())
    return taken


def _check(key: str, first: str, now: str) -> None:
    """Refuses another request than the first one of a key."""
    if now != first:
        raise KeyReused(f"The idempotency key '{key}' belongs to another request.", hint="use a new key")


async def _claimed(request: Request, keys: KeyStore, key: str, fingerprint: str) -> Claim | None:
    claim = await keys.claim(key, fingerprint)
    if claim is None:
        return None
    _check(key, claim.fingerprint, fingerprint)
    if claim.owner is None:
        return claim
    if keys.is_mine(claim):  # of a request that could not even free it
        await keys.release(key)
    else:
        await service_of(request).store.interrupt_orphans()
    claim = await keys.claim(key, fingerprint)
    if claim is not None and claim.owner is not None:
        raise KeyInUse(f"Another process is answering the request of the idempotency key '{key}'.")
    return claim


def _kept(claim: Claim) -> Response:
    if claim.body is None or claim.status is None:
        raise Conflict("This request was answered; the answer was too long to be kept.", hint="use a new key")
    return Response(claim.body, claim.status, {_REPLAYED: "true"}, claim.media_type)


async def _freed(keys: KeyStore, taken: _Taken, *, undone: bool = False) -> None:
    try:
        await keys.release(taken.key, undone=undone)
    finally:
        taken.leave()


class _Recorded(Response):
    """Sends a response, and keeps what it sent if it came to its proper end."""

    def __init__(self, response: Response, keys: KeyStore, taken: _Taken) -> None:
        self.background = None
        self._response = response
        self._keys = keys
        self._taken = taken
        self._sent: list[bytes] = []
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        response = self._response

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body":
                self._sent.append(message.get("body", b""))
                self._ended = not message.get("more_body", False)
            await send(message)

        try:
            await response(scope, receive, sending)
        finally:
            complete = self._ended and (not isinstance(response, Stream) or response.complete)
            await (
                self._keep() if complete and response.status_code < 300 else _freed(self._keys, self._taken)
            )

    async def _keep(self) -> None:
        response = self._response
        kind = response.headers.get("content-type", "application/json")
        try:
            await self._keys.answer(
                self._taken.key, status=response.status_code, media_type=kind, body=b"".join(self._sent)
            )
        finally:
            self._taken.leave()


def fingerprint_of(request: Request, body: bytes) -> str:
    """Of the route, its query and the JSON, however its keys are ordered."""
    with suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):  # no JSON, or too deep: it will be refused
        body = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return hashlib.blake2b(f"{asked}\0".encode() + body, digest_size=24).hexdigest()


def _read_again(body: bytes, receive: Receive) -> Receive:
    messages: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return dict(messages.pop()) if messages else await receive()

    return read
