"""Who may come in: state changes only from the page itself, and errors as one JSON shape.

Another site can make a browser post to a server on its own machine; it can neither name our origin
nor send JSON without asking first, and those two are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from rallychat.api.errors import problem_of
from rallychat.errors import Conflict, RallyChatError
from rallychat.settings import Settings

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class PageRoute(APIRoute):
    """A route of the page: refuses what comes from elsewhere, answers our errors as `{"error": …}`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the door in front of it."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            refusal = _refusal(request)
            if refusal is not None:
                return _error(403, "forbidden", refusal, "open the page itself and try again")
            try:
                return await handle(request)
            except RallyChatError as exc:
                return _error(problem_of(exc).status, exc.code, exc.message, exc.hint)
            except RequestValidationError as exc:
                first = exc.errors()[0]
                where = ".".join(str(part) for part in first["loc"][1:]) or "body"
                return _error(400, "invalid_request", f"'{where}': {first['msg']}.", "")

        return guarded


def _refusal(request: Request) -> str | None:
    """Why a state-changing request may not come in, or None."""
    if request.method in _READS:
        return None
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return "This request was made by another site."
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return "This request was made by another site."
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "This request is not JSON."
    return None


def _error(status: int, code: str, message: str, hint: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status)


def is_owner(settings: Settings) -> bool:
    """Whoever comes in sits at this machine: nobody else can reach the server, and there is no login."""
    return not (settings.beyond_loopback or settings.share or settings.allowed_hosts)


def only_owner(settings: Settings) -> None:
    """Raises Conflict where strangers could ask for the same."""
    if not is_owner(settings):
        raise Conflict(
            "Others can reach this server, so models are not set up on its page.",
            hint="do it where the server runs, on the command line or in its files",
        )
