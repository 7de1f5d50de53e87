"""The admins' page: people, invitations, everybody's keys, and the audit log."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from rallychat.accounts import admin
from rallychat.api.errors import Problem, problem_of
from rallychat.api.people_shapes import LimitsIn
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

    async def limit(self, user_id: str, **given: str) -> None:
        """What somebody may take; an empty field is no limit of their own."""
        try:
            asked = LimitsIn(**{name: int(value) for name, value in given.items() if value.strip()})
        except ValueError as exc:
            raise InvalidRequest("A limit is a whole number above 0, or nothing.", param="limits") from exc
        await self._accounts.people.change(user_id, limits=asked.value())

    async def set_password(self, user_id: str, password: str) -> None:
        """Another password; they are logged out everywhere."""
        await self._accounts.set_password(await self._accounts.people.get(user_id), password)


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

    @routes.post("/people/users/{user_id}/limits")
    async def limit(
        request: Request,
        user_id: str,
        concurrent: Field = "",
        requests_per_minute: Field = "",
        tokens_per_minute: Field = "",
        stored_bytes: Field = "",
    ) -> Response:
        admin()
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        deed = people.limit(user_id, concurrent=concurrent, stored_bytes=stored_bytes, **limits)
        return await people.after(request, deed)

    @routes.post("/people/users/{user_id}/password")
    async def set_password(request: Request, user_id: str, new: Field = "") -> Response:
        admin()
        return await people.after(request, people.set_password(user_id, new))

    @routes.post("/people/keys/{key_id}/revoke")
    async def revoke_any(request: Request, key_id: str) -> Response:
        admin()
        return await people.after(request, accounts.credentials.revoke(key_id, user_id=None))

    return routes
