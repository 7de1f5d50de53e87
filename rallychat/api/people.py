"""/v1/users, /v1/invites, /v1/keys, /v1/audit: what admins do with people and keys. (OpenAI has no such routes.)"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rallychat.accounts import Accounts, admin
from rallychat.api.idempotency import StatefulRoute
from rallychat.api.people_shapes import (
    DeedList,
    Gone,
    InviteAdded,
    InviteList,
    InviteOut,
    KeyAdded,
    KeyList,
    KeyOut,
    PasswordSet,
    UserAdded,
    UserChanged,
    UserList,
    UserOut,
    deed_out,
    invite_out,
    key_out,
    said,
    user_out,
)
from rallychat.api.responses.pages import listed
from rallychat.api.routing import problems
from rallychat.api.serving import service_of
from rallychat.unset import UNSET

router = APIRouter(route_class=StatefulRoute, tags=["people"])
_READ = problems(401, 403, 404, 500, 503)
_MADE = problems(400, 401, 403, 404, 409, 413, 415, 500, 503)
_USER = "/v1/users/{user_id}"


def _accounts(request: Request) -> Accounts:
    """For admins: everything here is theirs alone."""
    admin()
    return service_of(request).accounts


@router.get("/v1/users", response_model=None, responses={200: {"model": UserList}, **_READ})
async def list_users(request: Request) -> Response:
    """Every account, by name."""
    return said(listed([user_out(user) for user in await _accounts(request).people.list()]))


@router.post("/v1/users", response_model=None, responses={200: {"model": UserOut}, **_MADE})
async def add_user(request: Request, asked: UserAdded) -> Response:
    """A new account with a password; an invitation lets people choose their own."""
    accounts = _accounts(request)
    return said(user_out(await accounts.add(asked.name, asked.password, role=asked.role, email=asked.email)))


@router.get(_USER, response_model=None, responses={200: {"model": UserOut}, **_READ})
async def get_user(request: Request, user_id: str) -> Response:
    """One account."""
    return said(user_out(await _accounts(request).people.get(user_id)))


@router.post(_USER, response_model=None, responses={200: {"model": UserOut}, **_MADE})
async def change_user(request: Request, user_id: str, asked: UserChanged) -> Response:
    """Role, limits, email, disabled; whoever is disabled is logged out at once."""
    changed = await _accounts(request).people.change(
        user_id,
        role=UNSET if asked.role is None else asked.role,
        disabled=UNSET if asked.disabled is None else asked.disabled,
        email=asked.email if "email" in asked.model_fields_set else UNSET,
        limits=UNSET if asked.limits is None else asked.limits.value(),
    )
    return said(user_out(changed))


@router.delete(_USER, response_model=None, responses={200: {"model": Gone}, **problems(409), **_READ})
async def erase_user(request: Request, user_id: str) -> Response:
    """Deletes an account with everything of its user's, for good."""
    _accounts(request)
    await service_of(request).erase_user(user_id)
    return said({"id": user_id, "deleted": True})


@router.post(f"{_USER}/password", response_model=None, responses={200: {"model": UserOut}, **_MADE})
async def set_password(request: Request, user_id: str, asked: PasswordSet) -> Response:
    """Another password; the account is logged out everywhere."""
    accounts = _accounts(request)
    await accounts.set_password(await accounts.people.get(user_id), asked.password)
    return said(user_out(await accounts.people.get(user_id)))


@router.get("/v1/invites", response_model=None, responses={200: {"model": InviteList}, **_READ})
async def list_invites(request: Request) -> Response:
    """Invitations that can still be used."""
    return said(listed([invite_out(invite) for invite in await _accounts(request).people.invites()]))


@router.post("/v1/invites", response_model=None, responses={200: {"model": InviteOut}, **_MADE})
async def add_invite(request: Request, asked: InviteAdded) -> Response:
    """A link that makes one account. It is told this once."""
    token, invite = await _accounts(request).invite(
        role=asked.role, note=asked.note, lasting=timedelta(days=asked.days)
    )
    return said(invite_out(invite, link=f"{request.base_url}invite/{token}"))


@router.delete("/v1/invites/{invite_id}", response_model=None, responses={200: {"model": Gone}, **_READ})
async def withdraw_invite(request: Request, invite_id: str) -> Response:
    """Takes an invitation back."""
    await _accounts(request).people.withdraw(invite_id)
    return said({"id": invite_id, "deleted": True})


@router.get("/v1/keys", response_model=None, responses={200: {"model": KeyList}, **_READ})
async def list_keys(request: Request) -> Response:
    """Everybody's keys, revoked ones among them."""
    return said(listed([key_out(key) for key in await _accounts(request).credentials.keys(None)]))


@router.post(f"{_USER}/keys", response_model=None, responses={200: {"model": KeyOut}, **_MADE})
async def add_key(request: Request, user_id: str, asked: KeyAdded) -> Response:
    """A key of somebody else, for a service that has an account. The secret is told this once."""
    lasting = None if asked.days is None else timedelta(days=asked.days)
    secret, key = await _accounts(request).create_key(
        asked.name, scopes=asked.scopes, lasting=lasting, user_id=user_id
    )
    return said(key_out(key, secret=secret))


@router.delete("/v1/keys/{key_id}", response_model=None, responses={200: {"model": KeyOut}, **_READ})
async def revoke_key(request: Request, key_id: str) -> Response:
    """Makes anybody's key useless for good."""
    return said(key_out(await _accounts(request).credentials.revoke(key_id, user_id=None)))


@router.get("/v1/audit", response_model=None, responses={200: {"model": DeedList}, **problems(400), **_READ})
async def audit(
    request: Request,
    after: Annotated[str | None, Query(max_length=40, description="The id after which to go on.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
) -> Response:
    """What was done to people and keys, and by whom; the newest first."""
    found = await _accounts(request).deeds.list(limit=limit + 1, before=after)
    return said(listed([deed_out(deed) for deed in found[:limit]], more=len(found) > limit))
