"""People as the store gives them back: frozen values without a secret in them. Times are aware and in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from rallychat.identity import LOCAL_USER, Role

SCOPES: Final = ("chat", "files", "batches", "conversations", "admin")
"""What an API key can be for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user may take; None: as much as there is."""

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    stored_bytes: int | None = None

    def over(self, default: Limits) -> Limits:
        """These, and `default` where one is not set."""
        return Limits(**(default.as_dict() | self.as_dict()))

    def as_dict(self) -> dict[str, int]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with an account. `issuer` is who vouches for them, where it is not a password."""

    id: str
    name: str
    role: Role
    created_at: datetime
    email: str | None = None
    disabled: bool = False
    seen_at: datetime | None = None
    limits: Limits = NO_LIMITS
    issuer: str | None = None
    has_password: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A browser somebody is logged in with, until `expires_at` at the latest."""

    id: str
    user_id: str
    device: str
    address: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Invite:
    """A link that makes one account."""

    id: str
    role: Role
    note: str
    created_by: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key: `prefix` is its beginning, the rest is nowhere."""

    id: str
    user_id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = None

    def is_good(self, now: datetime) -> bool:
        """It opens something."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Deed:
    """One line of the audit log: who did what to whom."""

    id: str
    at: datetime
    actor: str
    actor_name: str
    action: str
    target: str
    detail: Mapping[str, Any]
    name: str | None = None
    """What the key or invitation that was the target is called; None: it is gone, or a person was the target."""
    owner: str | None = None
    """Whose key it is."""

    @property
    def target_name(self) -> str:
        """The target as a person reads it; an erased user's is an id."""
        match self.action.partition(".")[0]:
            case "key":
                begin = f"{self.detail.get('prefix', '')}…"
                said = f"{self.name} ({begin})" if self.name else begin
                return f"{said} of {self.owner}" if self.owner else said
            case "invite":
                role = self.detail.get("role")
                return ", ".join(filter(None, [self.name or "somebody", f"as {role}" if role else ""]))
            case _:
                return self.target


COMMAND_LINE: Final = "command line"


def actor_name(user_id: str, name: str | None) -> str:
    """As the audit log calls whoever acts."""
    return name or (COMMAND_LINE if user_id == LOCAL_USER else user_id)
