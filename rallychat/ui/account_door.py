"""The pages around the chat: plain HTML forms, without a script but the one that sets the colours.

A form comes from the page itself or is refused: browsers say where it was sent from (`Sec-Fetch-Site`, `Origin`),
and no other site's form carries the cookie along (`SameSite=Lax`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from rallychat.accounts import Entry
from rallychat.accounts.accounts import LONGEST
from rallychat.api.errors import Problem, problem_of
from rallychat.api.gate import keep_cookie
from rallychat.errors import RallyChatError
from rallychat.ui import fragments
from rallychat.ui.door import elsewhere

POLICY: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
}


class FormRoute(APIRoute):
    """A route of these pages: refuses forms that another site has sent."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the door in front of it."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            refusal = elsewhere(request)
            if refusal is not None:
                return shown(request, "said", 403, title="Refused", text=refusal)
            try:
                return await handle(request)
            except RallyChatError as exc:
                return shown(request, "said", problem_of(exc), title="Not possible", text=exc.sentence)
            except RequestValidationError:
                return shown(request, "said", 400, title="Not possible", text="This form is not ours.")

        return guarded


def shown(request: Request, template: str, status: int | Problem = 200, **values: Any) -> HTMLResponse:
    """One of these pages; with a problem's status, and when to come back, where something went wrong."""
    root = request.scope.get("root_path", "")
    code, told = (status.status, status.headers()) if isinstance(status, Problem) else (status, {})
    return HTMLResponse(fragments.shell(template, root=root, **values), code, {**POLICY, **told})


def led(request: Request, path: str) -> Response:
    """Leads on to a page of this server, whatever `path` says."""
    here = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return RedirectResponse(request.scope.get("root_path", "") + (path if here else "/"), 303)


def is_https(request: Request) -> bool:
    """The browser speaks HTTPS, perhaps with a proxy in front of us."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def entered(request: Request, entry: Entry, path: str) -> Response:
    """Leads on, logged in."""
    response = led(request, path)
    seconds = int(LONGEST.total_seconds())
    keep_cookie(response, entry.token, https=is_https(request), seconds=seconds)
    return response


def device_of(request: Request) -> str:
    """What the browser calls itself."""
    return request.headers.get("user-agent", "")[:200]
