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

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rallychat import tracing
from rallychat.allowance import Standing, hearing
from rallychat.api.errors import CUT_OFF, INTERNAL, Problem
from rallychat.identity import Person
from rallychat.logs import hashed, request_id

log = logging.getLogger(__name__)

PERSON = "rallychat.person"
"""Where in the ASGI scope the person stands who asks, once that is known."""

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
    log.error("%s\n%s", type(exc).__name__, frames)


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
            with hearing() as standing, tracing.request(scope["method"], Headers(scope=scope)) as span:
                await self._answer(scope, receive, send, name, span, standing)
        finally:
            request_id.reset(token)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        name: str,
        span: dict[str, str | int],
        standing: Standing,
    ) -> None:
        ours = is_ours(scope["path"])
        headers = ((b"x-request-id", name.encode()), *_EVERYWHERE, *(_NOT_PAGES if ours else ()))
        began, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [*message["headers"], *headers, *limit_headers(standing)]
                message = {**message, "headers": told}
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
            span |= {
                "http.route": getattr(scope.get("route"), "path", ""),
                "http.response.status_code": status or 499,
                "rallychat.request_id": name,
            }
            level = logging.INFO if ours else logging.DEBUG
            took = round((time.perf_counter() - began) * 1000, 1)
            line = {
                "method": scope["method"],
                "path": _shown(scope["path"]),
                "status": status or 499,
                "ms": took,
            }
            if log.isEnabledFor(level):
                log.log(level, "%(method)s %(path)s %(status)d in %(ms).1f ms", line, extra=line | _by(scope))


def limit_headers(standing: Standing) -> list[tuple[bytes, bytes]]:
    """How whoever asks stands within their limits a minute, in OpenAI's names."""
    told = [
        (f"x-ratelimit-{what}-{name}", value)
        for name, left in standing.left.items()
        for what, value in (
            ("limit", f"{left.limit}"),
            ("remaining", f"{left.remaining}"),
            ("reset", _duration(left.reset)),
        )
    ]
    return [(name.encode(), value.encode()) for name, value in told]


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 1m0s, 59.2s, 12ms."""
    ms = max(0, round(seconds * 1000))
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m{rest // 1000}s" if minutes else f"{rest / 1000:g}s"


async def _answer_with(problem: Problem, send: Send) -> None:
    response = problem.response()
    await send({"type": "http.response.start", "status": problem.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def _by(scope: Scope) -> dict[str, str]:
    person = scope.get(PERSON)
    return {"user": hashed(person.id)} if isinstance(person, Person) else {}


def _shown(path: str) -> str:
    """A path fit for one line of a log; a link that opens something is not told."""
    for link in ("/invite/", "/share/"):
        if path.startswith(link):
            return f"{link}..."
    return path[:200].encode("unicode_escape").decode("ascii")
