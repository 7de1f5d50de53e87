"""Who people are: accounts, passwords, sessions, invitations, API keys. Public face: `Accounts`."""

from __future__ import annotations

from rallychat.accounts.accounts import Accounts, Entry
from rallychat.accounts.permissions import admin, oneself
from rallychat.store.account_types import SCOPES, ApiKey, Deed, Invite, Limits, Session, User

__all__ = [
    "SCOPES",
    "Accounts",
    "ApiKey",
    "Deed",
    "Entry",
    "Invite",
    "Limits",
    "Session",
    "User",
    "admin",
    "oneself",
]
