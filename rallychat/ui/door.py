"""Who may come in: state changes only from the page itself, and errors as one JSON shape.

Another site can make a browser post to a server on its own machine; it can neither name our origin
nor send JSON without asking first, and those two are checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from rallychat.accounts.permissions import is_admin
from rallychat.api.errors import problem_of, without_places
from rallychat.api.idempotency import keyed, takes_key
from rallychat.api.routing import StrictRequest
from rallychat.chat import ChatService
from rallychat.errors import Conflict, Forbidden, RallyChatError, StoreError
from rallychat.identity import current
from rallychat.settings import Settings

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class PageRoute(APIRoute):
    """A route of the page: refuses what comes from elsewhere, answers our errors as `{"error": …}`.

    It knows idempotency keys, if its function takes one.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the door in front of it."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        handle = keyed(strict) if takes_key(self) else strict

        async def guarded(request: Request) -> Response:
            refusal = _refusal(request)
            if refusal is not None:
                return _error(403, "forbidden", refusal, "open the page itself and try again")
            try:
                return await handle(request)
            except RallyChatError as exc:
                message = without_places(exc.message) if isinstance(exc, StoreError) else exc.message
                problem = problem_of(exc)
                return _error(problem.status, exc.code, message, exc.hint, problem.headers())
            except RequestValidationError as exc:
                first = exc.errors()[0]
                where = ".".join(str(part) for part in first["loc"][1:]) or "body"
                return _error(400, "invalid_request", f"'{where}': {first['msg']}.", "")

        return guarded


def elsewhere(request: Request) -> str | None:
    """Why a state-changing request may not come in, if another site has sent it."""
    if request.method in _READS:
        return None
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site == "same-origin":  # what the browser says itself; a proxy may have changed the Host that we see
        return None
    same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    return None if same and site in (None, "none") else "This request was made by another site."


def _refusal(request: Request) -> str | None:
    """Why a state-changing request may not come in, or None."""
    if request.method in _READS:
        return None
    if (refusal := elsewhere(request)) is not None:
        return refusal
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "This request is not JSON."
    return None


def _error(
    status: int, code: str, message: str, hint: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status, headers)


def is_owner(settings: Settings) -> bool:
    """Whoever comes in is an admin, or sits at this machine: nobody else can reach the server."""
    return is_admin() and (current().via != "local" or not settings.others_can_reach)


def only_keeper() -> None:
    """Raises Forbidden for members: what is fetched, freed or deleted is everybody's.

    Where nobody has an account, everybody may: there is nobody else to ask.
    """
    if not (is_admin() or current().via == "local"):
        raise Forbidden("Models are fetched, freed and deleted by an admin.", hint="ask one")


async def noted(service: ChatService, action: str, model_id: str) -> None:
    """Keeps in the audit log what an admin has done to a model. Where nobody logs in there is nobody to name."""
    if current().via != "local":
        await service.accounts.deeds.add(action, model_id)


def only_owner(settings: Settings) -> None:
    """Raises Conflict where strangers could ask for the same."""
    if not is_owner(settings):
        raise Conflict(
            "Models are set up by an admin, or where the server runs.",
            hint="ask an admin, or do it on the command line or in its files",
        )
