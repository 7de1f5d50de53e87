"""Who may ask, and how much. Keeps web pages of other origins away from a server without a login.

A page elsewhere cannot read our answers (there is no CORS), but it could send requests, or pretend to be us
by pointing its own name at 127.0.0.1 (DNS rebinding). Both carry a Host or an Origin that is not ours.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rallychat.api.errors import Problem
from rallychat.settings import Settings, is_loopback

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_COUNTED_THERE = "/v1/conversations/import"
_COUNTED = ("/v1/", "/ui/", "/login", "/logout", "/invite/", "/account", "/people", "/batches")
_UPLOADS = frozenset({"/v1/files", "/batches"})


class Guard:
    """Refuses Host headers that are not ours and cross-origin requests that change things.

    Beyond loopback nobody can know all names of the server: any is answered there, unless `allowed_hosts` names them.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._added = frozenset(name.lower() for name in settings.allowed_hosts)
        self._any_host = settings.share or (settings.beyond_loopback and not self._added)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope), scope)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem.message})
        else:
            await problem.response()(scope, receive, send)

    def _problem(self, headers: Headers, scope: Scope) -> Problem | None:
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return Problem(400, "There is more than one Host header.", "invalid_host")
        host = hosts[0].lower() if hosts else ""
        if host and not self._any_host and not self._known(_name(host), scope):
            message = "This server answers only to local names; 'allowed_hosts' adds others."
            return Problem(403, message, "foreign_host")
        origin = headers.get("origin")
        if scope.get("method") not in _SAFE and origin is not None and not self._same(origin.lower(), host):
            message = "Requests from other origins' pages are refused (see 'allowed_hosts')."
            return Problem(403, message, "foreign_origin")
        return None

    def _known(self, name: str, scope: Scope) -> bool:
        """One of ours, or the very address that the connection came to: a probe of a cluster has no other."""
        return is_loopback(name) or name in self._added or name == (scope.get("server") or ("",))[0]

    def _same(self, origin: str, host: str) -> bool:
        """`origin` is the page's own "scheme://host:port", or "null" for a page that hides it."""
        scheme, _, authority = origin.partition("://")
        default = {"http": ":80", "https": ":443"}.get(scheme, "")
        same = bool(default) and authority.removesuffix(default) == host.removesuffix(default)
        return same or _name(authority) in self._added


class BodyLimit:
    """Refuses request bodies that are larger than `limit` bytes, announced or not; `uploads` for files."""

    def __init__(self, app: ASGIApp, limit: int, uploads: int) -> None:
        self._app = app
        self._limit = limit
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its body counted."""
        if scope["type"] != "http" or not self._counts(scope["path"]):
            await self._app(scope, receive, send)
            return
        upload = scope["method"] == "POST" and scope["path"] in _UPLOADS
        limit = self._uploads if upload else self._limit
        sentence = _too_large(limit, "max_file_bytes" if upload else "max_body_bytes")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:19]) > limit:
            problem = Problem(413, sentence, "request_too_large")
            await problem.response()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, sentence)
            return message

        await self._app(scope, counted, send)

    def _counts(self, path: str) -> bool:
        return path.startswith(_COUNTED) and path != _COUNTED_THERE  # which has a limit of its own


def _too_large(limit: int, setting: str) -> str:
    return f"The request body is larger than {limit} bytes, the limit '{setting}' sets."


def _name(authority: str) -> str:
    """The name in "name:port" or "[::1]:port"; empty if it is neither."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
