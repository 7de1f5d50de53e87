"""Pages of who is not in yet: log in, log out, take an invitation."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from rallychat.accounts.oidc import Flow
from rallychat.api.errors import Problem, problem_of
from rallychat.api.gate import drop_cookie
from rallychat.api.myself import address_of, session_of
from rallychat.chat import ChatService
from rallychat.errors import LoginFailed, NotFound, RallyChatError
from rallychat.identity import current
from rallychat.ui.account_door import FormRoute, device_of, entered, is_https, led, shown

Field = Annotated[str, Form(max_length=2000)]
AWAY: Final = "rallychat_away"
AWAY_SECONDS: Final = 600
_PATH: Final = "/login/oidc/callback"


class Entrance:
    """What stands in front of the wall."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._accounts = service.accounts

    async def log_in(self, request: Request, name: str, password: str, following: str) -> Response:
        """Leads on where it was going, or says what is wrong."""
        where = {"device": device_of(request), "address": address_of(request)}
        try:
            entry = await self._accounts.log_in(name, password, **where)
        except RallyChatError as exc:
            return self.form(request, problem_of(exc), following, name=name, wrong=exc.sentence)
        await self._forget(request)  # a login is a new session, whatever was there
        return entered(request, entry, following)

    async def log_out(self, request: Request) -> Response:
        """Ends this session, and leads to the login."""
        await self._forget(request)
        response = led(request, "/login")
        drop_cookie(response, https=is_https(request))
        return response

    async def invitation(self, request: Request, token: str) -> Response:
        """What a link invites to."""
        try:
            invite = await self._accounts.invited(token)
        except RallyChatError as exc:
            return shown(request, "said", problem_of(exc), title="Invitation", text=exc.sentence)
        return shown(request, "invite", token=token, role=invite.role, name="", wrong="")

    async def accept(self, request: Request, token: str, name: str, password: str, again: str) -> Response:
        """Makes the account and leads in, or says what is wrong."""
        try:
            role = (await self._accounts.invited(token)).role
        except RallyChatError as exc:
            return shown(request, "said", problem_of(exc), title="Invitation", text=exc.sentence)
        values = {"token": token, "role": role, "name": name[:100]}
        if password != again:
            return shown(request, "invite", 400, **values, wrong="The two passwords differ.")
        try:
            user = await self._accounts.accept(token, name, password)
        except RallyChatError as exc:
            return shown(request, "invite", problem_of(exc), **values, wrong=exc.sentence)
        await self._forget(request)
        entry = await self._accounts.enter(user, device=device_of(request), address=address_of(request))
        return entered(request, entry, "/")

    async def away(self, request: Request, following: str) -> Response:
        """Sends the browser to the provider, with a cookie it has to come back with."""
        if (provider := self._accounts.provider) is None:
            return led(request, "/login")
        try:
            url, flow = await provider.begin(_callback(request))
        except RallyChatError as exc:
            return self.form(request, problem_of(exc), following, wrong=exc.sentence)
        response = RedirectResponse(url, 303, {"cache-control": "no-store"})
        kept = urlencode({**asdict(flow), "next": following[:2000]})
        https = request.url.scheme == "https"
        response.set_cookie(
            AWAY, kept, max_age=AWAY_SECONDS, path=_PATH, secure=https, httponly=True, samesite="lax"
        )
        return response

    async def back(self, request: Request) -> Response:
        """Leads in whom the provider vouches for."""
        if (provider := self._accounts.provider) is None:
            return led(request, "/login")
        kept = dict(parse_qsl(request.cookies.get(AWAY, "")))
        flow = Flow(kept.get("state", ""), kept.get("nonce", ""), kept.get("verifier", ""))
        where = {"device": device_of(request), "address": address_of(request)}
        try:
            if not all((flow.state, flow.nonce, flow.verifier)):
                raise LoginFailed("This login was not begun here, or is too old.", hint="log in again")
            vouched = await provider.finish(flow, request.query_params, _callback(request))
            entry = await self._accounts.enter_vouched(vouched, **where)
        except RallyChatError as exc:
            response: Response = self.form(request, problem_of(exc), "/", wrong=exc.sentence)
        else:
            await self._forget(request)
            response = entered(request, entry, kept.get("next", "/"))
        response.delete_cookie(AWAY, path=_PATH)  # good once
        return response

    def form(
        self, request: Request, status: int | Problem, following: str, *, name: str = "", wrong: str = ""
    ) -> Response:
        """The page to log in on."""
        named = self._service.settings.oidc_name if self._accounts.provider else ""
        return shown(request, "login", status, next=following, name=name[:100], wrong=wrong, provider=named)

    async def _forget(self, request: Request) -> None:
        if (session := session_of(request)) is not None:
            with suppress(NotFound):
                await self._accounts.credentials.end(session.user_id, session.id)


def _callback(request: Request) -> str:
    """Where the provider sends the browser back to."""
    return str(request.base_url).rstrip("/") + _PATH


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=FormRoute)
    entrance = Entrance(service)

    @routes.get("/login")
    async def ask(request: Request, next: str = "/") -> Response:  # noqa: A002 - what addresses call it
        if current().via in ("session", "local"):
            return led(request, next)
        return entrance.form(request, 200, next)

    @routes.post("/login")
    async def log_in(
        request: Request,
        name: Field = "",
        password: Field = "",
        next: Field = "/",  # noqa: A002
    ) -> Response:
        return await entrance.log_in(request, name, password, next)

    @routes.get("/login/oidc")
    async def away(request: Request, next: str = "/") -> Response:  # noqa: A002
        return await entrance.away(request, next)

    @routes.get(_PATH)
    async def back(request: Request) -> Response:
        return await entrance.back(request)

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        return await entrance.log_out(request)

    @routes.get("/invite/{token}")
    async def invitation(request: Request, token: str) -> Response:
        return await entrance.invitation(request, token)

    @routes.post("/invite/{token}")
    async def accept(
        request: Request, token: str, name: Field = "", password: Field = "", again: Field = ""
    ) -> Response:
        return await entrance.accept(request, token, name, password, again)

    return routes
