"""People and keys in JSON: what may be asked, and what is answered. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rallychat.accounts import ApiKey, Deed, Invite, Limits, Session, User
from rallychat.api.schemas import Asked

MOST_DAYS = 3650
Days = Annotated[int, Field(ge=1, le=MOST_DAYS)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Password = Annotated[str, Field(max_length=1000)]
RoleIn = Literal["admin", "member"]
ScopeIn = Literal["chat", "files", "batches", "conversations", "admin"]


class LimitsIn(Asked):
    """What one user may take; what is left out or null is not limited."""

    concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=2**31)] | None = None
    stored_bytes: Annotated[int, Field(ge=0, le=2**50)] | None = None

    def value(self) -> Limits:
        """As the store keeps them."""
        return Limits(**self.model_dump())


class UserAdded(Asked):
    """A new account."""

    name: Name
    password: Password
    role: RoleIn = "member"
    email: Annotated[str, Field(max_length=320)] | None = None


class UserChanged(Asked):
    """What changes about an account; what is left out stays."""

    role: RoleIn | None = None
    disabled: bool | None = None
    email: Annotated[str, Field(max_length=320)] | None = None
    limits: LimitsIn | None = None


class PasswordSet(Asked):
    """Another password."""

    password: Password


class PasswordChanged(Asked):
    """Another password of one's own."""

    old: Password
    new: Password


class Erased(Asked):
    """That one is sure: the password, of who has one."""

    password: Password = ""


class InviteAdded(Asked):
    """A new invitation."""

    role: RoleIn = "member"
    note: Annotated[str, Field(max_length=200)] = ""
    days: Days = 7


class KeyAdded(Asked):
    """A new key; `days` until it expires, never if left out."""

    name: Name
    scopes: list[ScopeIn] = Field(default=["chat", "files", "batches", "conversations"], min_length=1)
    days: Days | None = None


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LimitsOut(_Out):
    """What one user may take; null: as much as there is."""

    concurrent: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    stored_bytes: int | None


class UserOut(_Out):
    """An account."""

    id: str
    object: Literal["user"]
    name: str
    email: str | None
    role: RoleIn
    disabled: bool
    created_at: int
    seen_at: int | None
    limits: LimitsOut
    issuer: str | None
    has_password: bool


class MeOut(_Out):
    """Who asks, and how they have proven it; `scopes` is null where everything is allowed that the role is."""

    id: str
    object: Literal["me"]
    name: str
    role: RoleIn
    via: Literal["local", "session", "key"]
    scopes: list[str] | None
    user: UserOut | None


class SessionOut(_Out):
    """A browser somebody is logged in with."""

    id: str
    object: Literal["session"]
    device: str
    address: str
    created_at: int
    seen_at: int
    expires_at: int
    current: bool


class InviteOut(_Out):
    """An invitation. `link` is told once, when it is made."""

    id: str
    object: Literal["invite"]
    role: RoleIn
    note: str
    created_by: str
    created_at: int
    expires_at: int
    link: str | None


class KeyOut(_Out):
    """An API key. `secret` is told once, when it is made."""

    id: str
    object: Literal["api_key"]
    user_id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    used_at: int | None
    secret: str | None


class DeedOut(_Out):
    """One line of the audit log."""

    id: str
    object: Literal["audit_event"]
    at: int
    actor: str
    actor_name: str
    action: str
    target: str
    target_name: str
    detail: dict[str, Any]


class Gone(_Out):
    """What is not there any more."""

    id: str
    deleted: bool


class _List(_Out):
    object: Literal["list"]
    first_id: str
    last_id: str
    has_more: bool


class UserList(_List):
    """Accounts."""

    data: list[UserOut]


class SessionList(_List):
    """Sessions."""

    data: list[SessionOut]


class InviteList(_List):
    """Invitations."""

    data: list[InviteOut]


class KeyList(_List):
    """Keys."""

    data: list[KeyOut]


class DeedList(_List):
    """The audit log, the newest first."""

    data: list[DeedOut]


def user_out(user: User) -> dict[str, Any]:
    """An account, described."""
    names = ("concurrent", "requests_per_minute", "tokens_per_minute", "stored_bytes")
    return {
        "id": user.id,
        "object": "user",
        "name": user.name,
        "email": user.email,
        "role": user.role,
        "disabled": user.disabled,
        "created_at": _seconds(user.created_at),
        "seen_at": _seconds(user.seen_at),
        "limits": {name: getattr(user.limits, name) for name in names},
        "issuer": user.issuer,
        "has_password": user.has_password,
    }


def session_out(session: Session, *, current: str | None) -> dict[str, Any]:
    """A session, described; `current` is the id of the one that asks."""
    return {
        "id": session.id,
        "object": "session",
        "device": session.device,
        "address": session.address,
        "created_at": _seconds(session.created_at),
        "seen_at": _seconds(session.seen_at),
        "expires_at": _seconds(session.expires_at),
        "current": session.id == current,
    }


def invite_out(invite: Invite, *, link: str | None = None) -> dict[str, Any]:
    """An invitation, described."""
    return {
        "id": invite.id,
        "object": "invite",
        "role": invite.role,
        "note": invite.note,
        "created_by": invite.created_by,
        "created_at": _seconds(invite.created_at),
        "expires_at": _seconds(invite.expires_at),
        "link": link,
    }


def key_out(key: ApiKey, *, secret: str | None = None) -> dict[str, Any]:
    """A key, described."""
    return {
        "id": key.id,
        "object": "api_key",
        "user_id": key.user_id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "created_at": _seconds(key.created_at),
        "expires_at": _seconds(key.expires_at),
        "revoked_at": _seconds(key.revoked_at),
        "used_at": _seconds(key.used_at),
        "secret": secret,
    }


def deed_out(deed: Deed) -> dict[str, Any]:
    """A line of the audit log, described."""
    return {
        "id": deed.id,
        "object": "audit_event",
        "at": _seconds(deed.at),
        "actor": deed.actor,
        "actor_name": deed.actor_name,
        "action": deed.action,
        "target": deed.target,
        "target_name": deed.target_name,
        "detail": dict(deed.detail),
    }


def said(value: Mapping[str, Any] | Sequence[Any]) -> Response:
    """JSON that no cache keeps."""
    return Response(orjson.dumps(value), headers={"cache-control": "no-store"}, media_type="application/json")


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
