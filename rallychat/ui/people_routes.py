"""The admins' page: people, invitations, everybody's keys, and the audit log."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from rallychat.accounts import admin
from rallychat.api.errors import Problem, problem_of
from rallychat.chat import ChatService
from rallychat.errors import InvalidRequest, RallyChatError
from rallychat.identity import LOCAL_USER, current
from rallychat.ui.account_door import FormRoute, led, shown

Field = Annotated[str, Form(max_length=2000)]


class People:
    """The admins' page."""

    def __init__(self, service: ChatService) -> None:
        self._accounts = service.accounts

    async def page(self, request: Request, status: int | Problem = 200, **told: Any) -> Response:
        """With what there is, and what was just said of it."""
        users = await self._accounts.people.list()
        return shown(
            request,
            "people",
            status,
            users=users,
            names={user.id: user.name for user in users} | {LOCAL_USER: LOCAL_USER},
            me=current().id,
            invites=await self._accounts.people.invites(),
            keys=[key for key in await self._accounts.credentials.keys(None) if key.revoked_at is None],
            deeds=await self._accounts.deeds.list(limit=50),
            **({"wrong": "", "link": ""} | told),
        )

    async def after(self, request: Request, deed: Awaitable[object]) -> Response:
        """The page, once something was tried."""
        try:
            await deed
        except RallyChatError as exc:
            return await self.page(request, problem_of(exc), wrong=exc.sentence)
        return led(request, "/people")

    async def invite(self, request: Request, role: str, note: str) -> Response:
        """The page with a new link on it, this once."""
        token, _ = await self._accounts.invite(role="admin" if role == "admin" else "member", note=note)
        return await self.page(request, link=f"{request.base_url}invite/{token}")

    async def change(self, user_id: str, what: str) -> None:
        """Role, or whether they may come in."""
        if what in ("admin", "member"):
            await self._accounts.people.change(user_id, role="admin" if what == "admin" else "member")
        elif what in ("disable", "enable"):
            await self._accounts.people.change(user_id, disabled=what == "disable")
        else:
            raise InvalidRequest("Nothing is called so.", param="what")


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=FormRoute)
    people, accounts = People(service), service.accounts

    @routes.get("/people")
    async def everybody(request: Request) -> Response:
        admin()
        return await people.page(request)

    @routes.post("/people/invites")
    async def invite(request: Request, role: Field = "member", note: Field = "") -> Response:
        admin()
        return await people.invite(request, role, note)

    @routes.post("/people/invites/{invite_id}/withdraw")
    async def withdraw(request: Request, invite_id: str) -> Response:
        admin()
        return await people.after(request, accounts.people.withdraw(invite_id))

    @routes.post("/people/users/{user_id}")
    async def change(request: Request, user_id: str, what: Field = "") -> Response:
        admin()
        return await people.after(request, people.change(user_id, what))

    @routes.post("/people/keys/{key_id}/revoke")
    async def revoke_any(request: Request, key_id: str) -> Response:
        admin()
        return await people.after(request, accounts.credentials.revoke(key_id, user_id=None))

    return routes
