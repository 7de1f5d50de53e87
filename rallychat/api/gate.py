"""Who asks: each request is done for the person that its API key or its cookie proves, or is sent away.

Where nobody has to log in, everything is the one local person's. That is decided when the first request comes.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Final
from urllib.parse import quote

import orjson
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rallychat.accounts import Accounts
from rallychat.api.errors import Problem, problem_of
from rallychat.api.request_context import PERSON, is_ours
from rallychat.api.scopes import ANY, is_open, scope_of
from rallychat.api.welcome import Watch, Welcome
from rallychat.errors import RallyChatError
from rallychat.identity import ANYBODY, LOCAL, NOBODY, Person, acting_as
from rallychat.settings import Settings

COOKIE: Final = "rallychat_session"
SESSION: Final = "rallychat.session"
"""Where in the ASGI scope the session stands that a request came with."""
_WRONG_KEY: Final = "This API key is not known, or is not good any more."
_NO_KEY: Final = "This server wants an API key, as 'Authorization: Bearer KEY'; its page wants a login."


class Gate:
    """Pure ASGI, in front of API and page alike."""

    def __init__(self, app: ASGIApp, accounts: Accounts, settings: Settings) -> None:
        self._app = app
        self._accounts = accounts
        self._unknown = ANYBODY if settings.others_can_reach else LOCAL
        self._needed: bool | None = None
        self._watches: dict[Hashable, Watch] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass, for whom it is."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        try:
            found = await self._who(scope)
        except RallyChatError as exc:
            found = NOBODY if is_open(scope["path"]) else problem_of(exc)
        if isinstance(found, Person):
            scope[PERSON] = found
            with acting_as(found):
                await self._let_in(scope, receive, send, found)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": found.message})
        else:
            await _refusal(scope, found)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, person: Person) -> None:
        if person.via not in ("session", "key") or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        welcome = Welcome(
            scope,
            receive,
            send,
            watches=self._watches,
            by=person.key_id or scope[SESSION].id,
            who=lambda: self._who(scope),
            refuse=partial(_refusal, scope),
        )
        try:
            await self._app(scope, receive, welcome.send)
        finally:
            await welcome.aclose()

    async def _who(self, scope: Scope) -> Person | Problem:
        if self._needed is None:
            self._needed = await self._accounts.login_needed()
        if not self._needed:
            return self._unknown
        headers, path = Headers(scope=scope), scope["path"]
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and is_ours(path):
            person = await self._accounts.of_key(secret.strip())
            if person is None:
                return NOBODY if is_open(path) else Problem(401, _WRONG_KEY, "invalid_api_key")
            wanted = scope_of(path)
            if wanted != ANY and not person.may(wanted) and not is_open(path):
                return Problem(403, f"This API key is not for '{wanted}'.", "forbidden")
        else:
            person = await self._of_cookie(scope, headers)
        if path == "/metrics" and person is not None and person.role != "admin":
            return Problem(403, "Only an admin may see this.", "forbidden")
        if person is not None or is_open(path):
            return person or NOBODY
        return Problem(401, _NO_KEY, "invalid_api_key")

    async def _of_cookie(self, scope: Scope, headers: Headers) -> Person | None:
        if (token := token_of(headers.getlist("cookie"))) is None:
            return None
        if (found := await self._accounts.of_session(token)) is None:
            return None
        scope[SESSION] = found[0]
        return found[1]


def token_of(cookies: list[str]) -> str | None:
    """The session's token among the cookies a browser sent, whatever other servers of this name have set."""
    return next((found[COOKIE] for found in map(cookie_parser, cookies) if COOKIE in found), None)


def keep_cookie(response: Response, token: str, *, https: bool, seconds: int) -> None:
    """Gives a session to a browser; no script sees it, and no other site's request carries it along."""
    response.set_cookie(COOKIE, token, max_age=seconds, path="/", secure=https, httponly=True, samesite="lax")


def drop_cookie(response: Response, *, https: bool) -> None:
    """Takes it back."""
    response.delete_cookie(COOKIE, path="/", secure=https, httponly=True, samesite="lax")


def _refusal(scope: Scope, problem: Problem) -> Response:
    """Pages lead to the login; whatever a script asks for is told in its own shape."""
    path = scope["path"]
    if is_ours(path):
        return problem.response({"www-authenticate": "Bearer"} if problem.status == 401 else None)
    if problem.status == 401 and not path.startswith(("/ui/", "/gradio")):
        asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        seen = asked != "/" and scope["method"] in ("GET", "HEAD")
        following = f"?next={quote(asked, safe='')}" if seen else ""
        headers = {"cache-control": "no-store"}
        return RedirectResponse(f"{scope.get('root_path', '')}/login{following}", 303, headers)
    said = {"code": "login_needed", "message": "You are not logged in.", "hint": "log in and try again"}
    if problem.status != 401:
        said = {"code": problem.code, "message": problem.message, "hint": ""}
    return Response(orjson.dumps({"error": said}), problem.status, problem.headers(), "application/json")
