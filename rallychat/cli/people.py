"""`rallychat users` and `rallychat keys`: people and keys, straight in the database. Whoever can read it is admin."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console
from rich.table import Table

from rallychat.accounts import SCOPES, Accounts, ApiKey, Invite, Limits, Session, User
from rallychat.accounts.accounts import checked_name
from rallychat.api.people_shapes import deed_out
from rallychat.cli.options import literal, printable
from rallychat.cli.serve import url_of
from rallychat.cli.whose import noted
from rallychat.errors import InvalidRequest, NotFound
from rallychat.identity import LOCAL_USER, Role
from rallychat.settings import Settings
from rallychat.signals import interruptible
from rallychat.store import ConversationStore


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Accounts]:
    """The accounts of a data folder."""
    async with ConversationStore.open(settings) as store:
        yield Accounts(store, settings)


async def add_user(settings: Settings, name: str, *, admin: bool, email: str | None, adopt: bool) -> None:
    """Make an account."""
    name = checked_name(name)
    password = _password(f"Password of {name}")
    async with opened(settings) as accounts:
        first = not await accounts.people.any()
        user = await accounts.add(name, password, role="admin" if admin else "member", email=email)
        if adopt:
            await accounts.people.adopt(user.id)
    typer.echo(f"{user.name} ({user.role}) can log in.")
    if first:
        typer.echo("From its next start on, the server asks everybody to log in.")


async def list_users(settings: Settings, *, as_json: bool) -> None:
    """List the accounts."""
    async with opened(settings) as accounts:
        users = await accounts.people.list()
    if as_json:
        typer.echo(json.dumps([_user(user) for user in users], indent=2))
        return
    table = Table("name", "role", "email", "comes in by", "last seen", "limits", box=None)
    for user in users:
        way = user.issuer or ("password" if user.has_password else "-")
        limits = ", ".join(f"{name} {value}" for name, value in user.limits.as_dict().items())
        table.add_row(
            user.name,
            user.role,
            literal(user.email or "-"),
            "disabled" if user.disabled else literal(way),
            _time(user.seen_at),
            limits or "-",
        )
    Console().print(table)


async def invite_user(settings: Settings, *, admin: bool, note: str, days: int, url: str | None) -> None:
    """Print a link."""
    async with opened(settings) as accounts:
        token, _ = await accounts.invite(
            role="admin" if admin else "member", note=note, lasting=timedelta(days=days)
        )
    typer.echo(f"{(url or url_of(settings)).rstrip('/')}/invite/{token}")


async def list_invites(settings: Settings, *, as_json: bool) -> None:
    """List the invitations that can still be used."""
    async with opened(settings) as accounts:
        invites = await accounts.people.invites()
    if as_json:
        typer.echo(json.dumps([_plain(invite, "created_by") for invite in invites], indent=2))
        return
    table = Table("invitation", "for", "as", "expires", box=None)
    for invite in invites:
        table.add_row(invite.id, literal(invite.note or "-"), invite.role, _time(invite.expires_at))
    Console().print(table)


async def withdraw_invite(settings: Settings, invite_id: str) -> None:
    """Take an invitation back."""
    async with opened(settings) as accounts:
        await accounts.people.withdraw(invite_id)
    typer.echo("The invitation makes no account any more.")


async def list_sessions(settings: Settings, name: str, *, as_json: bool) -> None:
    """List where somebody is logged in."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        sessions = await accounts.credentials.sessions(user.id)
    if as_json:
        typer.echo(json.dumps([_plain(session, "user_id") for session in sessions], indent=2))
        return
    table = Table("session", "device", "address", "since", "last seen", box=None)
    for session in sessions:
        device, address = literal(session.device or "-"), literal(session.address or "-")
        table.add_row(session.id, device, address, _time(session.created_at), _time(session.seen_at))
    Console().print(table)


async def log_out(settings: Settings, name: str, session_id: str | None) -> None:
    """End one of somebody's sessions, or (None) all."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        ended = await accounts.credentials.log_out(user, session_id)
    typer.echo(f"{ended} session{'s' if ended != 1 else ''} of {user.name} ended.")


async def set_password(settings: Settings, name: str) -> None:
    """Set another password."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        await accounts.set_password(user, _password(f"New password of {user.name}"))
    typer.echo(f"{user.name} has another password and is logged out everywhere.")


async def set_role(settings: Settings, name: str, role: str) -> None:
    """Make somebody an admin, or a member."""
    if role not in ("admin", "member"):
        raise InvalidRequest(f"'{role}' is not a role.", param="role", hint="say admin or member")
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        await accounts.people.change(user.id, role=cast(Role, role))
    typer.echo(f"{user.name} is {'an admin' if role == 'admin' else 'a member'}.")


async def set_limits(
    settings: Settings,
    name: str,
    *,
    concurrent: int | None,
    requests: int | None,
    tokens: int | None,
    stored: int | None,
) -> None:
    """Set what an account may take."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        changed = await accounts.people.change(user.id, limits=Limits(concurrent, requests, tokens, stored))
    told = ", ".join(f"{name} {value}" for name, value in changed.limits.as_dict().items())
    typer.echo(f"{user.name}: {told or 'no limits'}.")


async def set_disabled(settings: Settings, name: str, *, disabled: bool) -> None:
    """Keep somebody out, or let them in again."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        await accounts.people.change(user.id, disabled=disabled)
    typer.echo(f"{user.name} {'is kept out' if disabled else 'may come in'}.")


async def export_user(settings: Settings, name: str, path: Path) -> None:
    """Write everything of a user into a file."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        await noted(accounts, "user.export", user.name)
        try:
            await accounts.belongings.export(user.id, path)
        except OSError as exc:
            raise InvalidRequest(f"{path} cannot be written: {exc.strerror}.", hint="name another") from exc
    typer.echo(f"Everything of {user.name} is in {path}.")


async def remove_user(settings: Settings, name: str, *, sure: bool) -> None:
    """Delete an account with everything of its user's."""
    async with opened(settings) as accounts:
        user = await accounts.people.named(checked_name(name))
        if not sure:
            with interruptible():
                typer.confirm(f"Delete {user.name} and everything of theirs, for good?", abort=True)
        await accounts.erase(user.id)
    typer.echo(f"{user.name} and everything of theirs is deleted.")


async def audit(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Show what was done with people, keys and models."""
    async with opened(settings) as accounts:
        deeds = await accounts.deeds.list(limit=limit)
    if as_json:
        typer.echo(json.dumps([deed_out(deed) for deed in deeds], indent=2))
        return
    table = Table("when", "who", "what", "whom or which", box=None)
    for deed in deeds:
        table.add_row(_time(deed.at), literal(deed.actor_name), deed.action, literal(deed.target_name))
    Console().print(table)


async def create_key(
    settings: Settings, name: str, *, user: str | None, scopes: Sequence[str] | None, days: int | None
) -> None:
    """Print a new key on standard output, and what it is beside it."""
    wanted = scopes or [scope for scope in SCOPES if scope != "admin"]
    async with opened(settings) as accounts:
        user_id = LOCAL_USER if user is None else (await accounts.people.named(checked_name(user))).id
        secret, key = await accounts.create_key(
            name, scopes=wanted, lasting=None if days is None else timedelta(days=days), user_id=user_id
        )
    typer.echo(secret)
    typer.echo(f"{key.id}, for {', '.join(key.scopes)}. It is shown this once.", err=True)


async def list_keys(settings: Settings, *, user: str | None, as_json: bool) -> None:
    """List the keys."""
    async with opened(settings) as accounts:
        names = {person.id: person.name for person in await accounts.people.list()}
        user_id = None if user is None else (await accounts.people.named(checked_name(user))).id
        keys = await accounts.credentials.keys(user_id)
    if as_json:
        typer.echo(json.dumps([_key(key, names) for key in keys], indent=2))
        return
    table = Table("key", "id", "name", "whose", "for", "last used", "expires", box=None)
    for key in keys:
        table.add_row(
            f"{key.prefix}…",
            key.id,
            literal(key.name),
            names.get(key.user_id, key.user_id),
            ", ".join(key.scopes),
            _time(key.used_at),
            "revoked" if key.revoked_at else _time(key.expires_at),
        )
    Console().print(table)


async def revoke_key(settings: Settings, name: str) -> None:
    """Make a key useless. It may be named by its beginning, if only one begins so."""
    async with opened(settings) as accounts:
        named = name.rstrip("…")
        found = [key for key in await accounts.credentials.keys(None) if named in (key.id, key.prefix)]
        if not found:
            raise NotFound("key", name, hint="`rallychat keys list` shows them")
        if len(found) > 1:
            raise InvalidRequest(f"Several keys begin with '{named}'.", hint="name it by its id")
        key = await accounts.revoke(found[0].id)
    typer.echo(f"{printable(key.name)} ({key.prefix}…) is useless now.")


def _password(prompt: str) -> str:
    """Asked for twice at a terminal; the first line of what is piped in."""
    with interruptible():
        if not sys.stdin.isatty():
            return sys.stdin.readline().rstrip("\r\n")
        return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=True))


def _user(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "name": user.name,
        "role": user.role,
        "email": user.email,
        "disabled": user.disabled,
        "issuer": user.issuer,
        "seen_at": user.seen_at.isoformat() if user.seen_at else None,
        "limits": user.limits.as_dict(),
    }


def _key(key: ApiKey, names: dict[str, str]) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "user": names.get(key.user_id, key.user_id),
        "scopes": list(key.scopes),
        "used_at": key.used_at.isoformat() if key.used_at else None,
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def _plain(value: Invite | Session, left_out: str) -> dict[str, Any]:
    given = {name: each for name, each in asdict(value).items() if name != left_out}
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in given.items()}


def _time(when: datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when else "-"
