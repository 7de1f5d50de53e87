"""The page of one's own account: password, sessions, keys, and all that one has."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from rallychat.accounts import SCOPES, oneself
from rallychat.accounts.permissions import is_admin
from rallychat.api.errors import Problem, problem_of
from rallychat.api.gate import drop_cookie
from rallychat.api.myself import address_of, exported, session_of
from rallychat.chat import ChatService
from rallychat.errors import InvalidRequest, RallyChatError
from rallychat.identity import LOCAL_USER, current
from rallychat.ui.account_door import FormRoute, is_https, led, shown

Field = Annotated[str, Form(max_length=2000)]
Fields = Annotated[list[str], Form(max_length=20, default_factory=list)]


class Account:
    """The page of one's own account."""

    def __init__(self, service: ChatService) -> None:
        self._accounts = service.accounts

    async def page(self, request: Request, status: int | Problem = 200, **told: Any) -> Response:
        """With what there is, and what was just said of it."""
        mine, session = oneself().id, session_of(request)
        user = None if mine == LOCAL_USER else await self._accounts.people.get(mine)
        values = {"wrong": "", "done": "", "secret": ""} | told
        return shown(
            request,
            "account",
            status,
            user=user,
            admin=is_admin(),
            sessions=await self._accounts.credentials.sessions(mine) if user else [],
            session=session.id if session else "",
            keys=[key for key in await self._accounts.keys() if key.revoked_at is None],
            scopes=[scope for scope in SCOPES if scope != "admin" or current().role == "admin"],
            **values,
        )

    async def after(self, request: Request, deed: Awaitable[object], **told: Any) -> Response:
        """The page, once something was tried."""
        try:
            await deed
        except RallyChatError as exc:
            return await self.page(request, problem_of(exc), wrong=exc.sentence)
        return await self.page(request, **told) if told else led(request, "/account")

    async def password(self, request: Request, old: str, new: str, again: str) -> None:
        """Another one."""
        if new != again:
            raise InvalidRequest("The two new passwords differ.")
        session = session_of(request)
        await self._accounts.change_password(
            old, new, address=address_of(request), session=session.id if session else None
        )

    async def key(self, request: Request, name: str, scopes: Sequence[str], days: str) -> Response:
        """The page with a new key on it, this once."""
        try:
            lasting = days_of(days)
            secret, _ = await self._accounts.create_key(name, scopes=scopes, lasting=lasting)
        except RallyChatError as exc:
            return await self.page(request, problem_of(exc), wrong=exc.sentence)
        return await self.page(request, secret=secret)


def days_of(text: str) -> timedelta | None:
    """How long a key lasts; None: for ever.

    Raises:
        InvalidRequest: it is no number of days.
    """
    text = text.strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= 3650:
        raise InvalidRequest("A key lasts 1 to 3650 days, or for ever.", param="days")
    return timedelta(days=int(text))


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=FormRoute)
    account = Account(service)
    accounts, credentials = service.accounts, service.accounts.credentials

    @routes.get("/account")
    async def mine(request: Request) -> Response:
        return await account.page(request)

    @routes.post("/account/password")
    async def password(request: Request, old: Field = "", new: Field = "", again: Field = "") -> Response:
        deed = account.password(request, old, new, again)
        return await account.after(request, deed, done="Your password is changed.")

    @routes.get("/account/export")
    async def export(request: Request) -> Response:
        return await exported(service)

    @routes.post("/account/erase")
    async def erase(request: Request, password: Field = "") -> Response:
        try:
            user_id = await accounts.sure_of_myself(password, address=address_of(request))
            await service.erase_user(user_id)
        except RallyChatError as exc:
            return await account.page(request, problem_of(exc), wrong=exc.sentence)
        response = led(request, "/login")
        drop_cookie(response, https=is_https(request))
        return response

    @routes.post("/account/sessions/{session_id}/end")
    async def end(request: Request, session_id: str) -> Response:
        return await account.after(request, credentials.end(oneself().id, session_id))

    @routes.post("/account/keys")
    async def add_key(request: Request, scopes: Fields, name: Field = "", days: Field = "") -> Response:
        return await account.key(request, name, scopes, days)

    @routes.post("/account/keys/{key_id}/revoke")
    async def revoke(request: Request, key_id: str) -> Response:
        return await account.after(request, accounts.revoke_own(key_id))

    return routes
