"""The outermost layer: a request's id, its line in the log, headers every answer carries, and the last catch.

Logs name methods, paths, statuses and times; never what a person wrote.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rallychat.api.errors import CUT_OFF, INTERNAL, Problem

log = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request being answered; the generation it starts inherits it."""

_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

_OURS = frozenset({"/v1", "/healthz", "/readyz", "/metrics", "/openapi.json"})
_EVERYWHERE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"))
_NOT_PAGES = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def is_ours(path: str) -> bool:
    """The path belongs to the API, not to a page beside it."""
    return path.startswith("/v1/") or path in _OURS


def log_failure(exc: BaseException) -> None:
    """Logs where it broke; not the exception's words, which may quote a person's."""
    frames = "".join(traceback.format_tb(exc.__traceback__))
    log.error("%s: %s\n%s", request_id.get(), type(exc).__name__, frames)


class RequestContext:
    """Pure ASGI: costs a token one function call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, whatever happens below."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _GIVEN.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        token = request_id.set(name)
        try:
            await self._answer(scope, receive, send, name)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        ours = is_ours(scope["path"])
        headers = ((b"x-request-id", name.encode()), *_EVERYWHERE, *(_NOT_PAGES if ours else ()))
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as exc:  # nothing below may take the connection down without an answer
            log_failure(exc)
            if not status:
                await _answer_with(Problem(500, INTERNAL, "internal_error"), send_named)
        except asyncio.CancelledError:  # the server stops
            if not status:
                await _answer_with(CUT_OFF, send_named)
            raise
        finally:
            level = logging.INFO if ours else logging.DEBUG
            took = (time.perf_counter() - began) * 1000
            what = f"{scope['method']} {_shown(scope['path'])}"
            log.log(level, "%s: %s %d in %.1f ms", name, what, status or 499, took)


async def _answer_with(problem: Problem, send: Send) -> None:
    response = problem.response()
    await send({"type": "http.response.start", "status": problem.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def _shown(path: str) -> str:
    """A path fit for one line of a log."""
    return path[:200].encode("unicode_escape").decode("ascii")
