"""Users and invitations. Who may change them is decided above; here every change is whole, and noted."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import Conflict, NotFound
from rallychat.identity import LOCAL_USER, Role
from rallychat.store.account_tables import invites, sessions, users
from rallychat.store.account_types import NO_LIMITS, Invite, Limits, User
from rallychat.store.batch_tables import batches
from rallychat.store.database import Database
from rallychat.store.deeds import note
from rallychat.store.ids import new_id
from rallychat.store.tables import conversations, messages, metadata
from rallychat.store.whole import whole
from rallychat.unset import UNSET, Unset

_NOT_ADOPTED = frozenset({"api_keys", "idempotency_keys", "sessions"})


class PeopleStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def any(self) -> bool:
        """There are accounts."""
        async with self._database.read() as db:
            return (await db.scalars(select(users.c.id).limit(1))).first() is not None

    @whole
    async def add(
        self,
        name: str,
        *,
        role: Role,
        password: str | None = None,
        email: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        invite: str | None = None,
    ) -> User:
        """A new user.

        Args:
            password: its hash.
            invite: the hash of the invitation that is used up by this; its role goes before `role`.

        Raises:
            Conflict: the name is taken. NotFound: there is no such invitation, or not any more.
        """
        row: dict[str, Any] = {"id": new_id("user"), "name": name, "email": email, "role": role}
        row |= {"password": password, "disabled": False, "issuer": issuer, "subject": subject}
        row |= {"limits": None, "created_at": datetime.now(UTC), "seen_at": None}
        async with self._database.write() as db:
            if invite is not None:
                row["role"] = (await _used_up(db, invite)).role
            try:
                await db.execute(insert(users).values(**row))
            except IntegrityError as exc:
                raise Conflict(f"There is a user '{name}' already.", hint="choose another name") from exc
            how = {"role": row["role"], "invited": invite is not None, "issuer": issuer}
            await note(db, "user.add", name, **how)
        return _user(row)

    @whole
    async def get(self, user_id: str) -> User:
        """One user."""
        async with self._database.read() as db:
            return _user(await _row(db, users.c.id == user_id, user_id))

    @whole
    async def named(self, name: str) -> User:
        """The user of this name."""
        async with self._database.read() as db:
            return _user(await _row(db, users.c.name == name, name))

    @whole
    async def list(self) -> builtins.list[User]:
        """Every user, by name."""
        async with self._database.read() as db:
            return [_user(row) for row in (await db.execute(select(users).order_by(users.c.name))).mappings()]

    @whole
    async def kept_out(self, user_ids: Collection[str]) -> set[str]:
        """Those of these users that are disabled or gone."""
        if not user_ids:
            return set()
        wanted = select(users.c.id).where(users.c.id.in_(user_ids), ~users.c.disabled)
        async with self._database.read() as db:
            return {*user_ids} - {*await db.scalars(wanted)}

    @whole
    async def password(self, name: str) -> tuple[User, str | None] | None:
        """The user of this name with the hash of their password; None if there is none."""
        async with self._database.read() as db:
            found = await db.execute(select(users).where(users.c.name == name))
            row = found.mappings().one_or_none()
        return None if row is None else (_user(row), row["password"])

    @whole
    async def vouched(self, issuer: str, subject: str) -> User | None:
        """Whom a provider knows under `subject`."""
        this = (users.c.issuer == issuer) & (users.c.subject == subject)
        async with self._database.read() as db:
            row = (await db.execute(select(users).where(this))).mappings().one_or_none()
        return None if row is None else _user(row)

    @whole
    async def change(
        self,
        user_id: str,
        *,
        role: Role | Unset = UNSET,
        disabled: bool | Unset = UNSET,
        email: str | Unset | None = UNSET,
        limits: Limits | Unset = UNSET,
    ) -> User:
        """Changes what is given. Whoever is disabled is logged out everywhere; what is made for them ends.

        Raises:
            Conflict: it would leave no admin that can log in.
        """
        asked = {"role": role, "disabled": disabled, "email": email}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not UNSET}
        if limits is not UNSET:
            given["limits"] = limits.as_dict() or None
        async with self._database.write() as db:
            row = await _row(db, users.c.id == user_id, user_id)
            if not given:
                return _user(row)
            await db.execute(update(users).where(users.c.id == user_id).values(**given))
            if _rules(row) and not _rules(row | given):
                await _refuse_the_last(db)
            if given.get("disabled"):
                await _shut_out(db, user_id)
            await note(db, "user.change", row["name"], **given)
        return _user(row | given)

    @whole
    async def set_password(
        self, user_id: str, password: str, *, keep: str | None = None, old: str | Unset | None = UNSET
    ) -> None:
        """Another password's hash. Ends every session but `keep`.

        Raises:
            Conflict: it is not the hash `old` any more.
        """
        others = sessions.c.user_id == user_id
        if keep is not None:
            others &= sessions.c.id != keep
        async with self._database.write() as db:
            row = await _row(db, users.c.id == user_id, user_id)
            this = [users.c.id == user_id] + ([] if old is UNSET else [users.c.password == old])
            if not (await db.execute(update(users).where(*this).values(password=password))).rowcount:
                raise Conflict("The password was changed meanwhile.", hint="log in with the new one")
            await db.execute(delete(sessions).where(others))
            await note(db, "user.password", row["name"])

    @whole
    async def rehash(self, user_id: str, old: str, new: str) -> None:
        """The same password's hash, made in another way; nothing if it is not `old` any more."""
        this = (users.c.id == user_id, users.c.password == old)
        async with self._database.write() as db:
            await db.execute(update(users).where(*this).values(password=new))

    @whole
    async def adopt(self, user_id: str) -> None:
        """What was written without login becomes this user's. Preferences and keys stay where they are."""
        async with self._database.write() as db:
            row = await _row(db, users.c.id == user_id, user_id)
            for table in metadata.sorted_tables:
                if "user_id" in table.c and table.name not in _NOT_ADOPTED:
                    theirs = table.c.user_id == LOCAL_USER
                    await db.execute(update(table).where(theirs).values(user_id=user_id))
            await note(db, "user.adopt", row["name"])

    @whole
    async def invite(self, hashed: str, *, role: Role, note_: str, by: str, expires_at: datetime) -> Invite:
        """A new invitation, by the hash of its token."""
        row = {"id": new_id("inv"), "role": role, "note": note_, "created_by": by}
        row |= {"created_at": datetime.now(UTC), "expires_at": expires_at}  # type: ignore[dict-item]
        async with self._database.write() as db:
            await db.execute(delete(invites).where(invites.c.expires_at <= datetime.now(UTC)))
            await db.execute(insert(invites).values(**row, hash=hashed))
            await note(db, "invite.add", row["id"], role=role)
        return _invite(row)

    @whole
    async def invited(self, hashed: str) -> Invite:
        """The invitation of a token that can still be used.

        Raises:
            NotFound: there is none.
        """
        async with self._database.read() as db:
            return await _invite_row(db, hashed)

    @whole
    async def invites(self) -> builtins.list[Invite]:
        """Those that can still be used, the newest first."""
        wanted = select(invites).where(invites.c.expires_at > datetime.now(UTC)).order_by(invites.c.id.desc())
        async with self._database.read() as db:
            return [_invite(row) for row in (await db.execute(wanted)).mappings()]

    @whole
    async def withdraw(self, invite_id: str) -> None:
        """Takes an invitation back."""
        async with self._database.write() as db:
            gone = delete(invites).where(invites.c.id == invite_id).returning(invites.c.role)
            role = (await db.scalars(gone)).one_or_none()
            if role is None:
                raise NotFound("invitation", invite_id)
            await note(db, "invite.withdraw", invite_id, role=role)


async def _row(db: AsyncConnection, which: ColumnElement[bool], name: str) -> dict[str, Any]:
    row = (await db.execute(select(users).where(which))).mappings().one_or_none()
    if row is None:
        raise NotFound("user", name)
    return dict(row)


async def _invite_row(db: AsyncConnection, hashed: str) -> Invite:
    this = (invites.c.hash == hashed) & (invites.c.expires_at > datetime.now(UTC))
    row = (await db.execute(select(invites).where(this))).mappings().one_or_none()
    if row is None:
        raise NotFound("invitation", "", hint="it was used or has expired; ask for another")
    return _invite(row)


async def _used_up(db: AsyncConnection, hashed: str) -> Invite:
    """The invitation, which is gone: of two who use it at once, one finds none."""
    found = await _invite_row(db, hashed)
    done = await db.execute(delete(invites).where(invites.c.id == found.id))
    if not done.rowcount:
        raise NotFound("invitation", "", hint="it was used; ask for another")
    return found


async def _shut_out(db: AsyncConnection, user_id: str) -> None:
    """Logs a user out, asks whoever makes answers for them to stop, and calls their batches off."""
    now = datetime.now(UTC)
    await db.execute(delete(sessions).where(sessions.c.user_id == user_id))
    theirs = select(conversations.c.id).where(conversations.c.user_id == user_id)
    growing = messages.c.conversation_id.in_(theirs) & (messages.c.status == "running")
    await db.execute(update(messages).where(growing).values(stop_at=now))
    begun = (batches.c.user_id == user_id) & batches.c.status.in_(("validating", "in_progress"))
    await db.execute(update(batches).where(begun).values(status="cancelling", cancelling_at=now))


def _rules(row: Mapping[str, Any]) -> bool:
    return row["role"] == "admin" and not row["disabled"]


async def _refuse_the_last(db: AsyncConnection) -> None:
    admins = select(users.c.id).where(users.c.role == "admin", ~users.c.disabled)
    if not (await db.scalars(admins.with_for_update())).all():  # two that demote each other meet here
        raise Conflict("This is the only admin.", hint="make somebody else an admin first")


def _user(row: Mapping[Any, Any]) -> User:
    return User(
        id=row["id"],
        name=row["name"],
        role=row["role"],
        created_at=row["created_at"],
        email=row["email"],
        disabled=row["disabled"],
        seen_at=row["seen_at"],
        limits=Limits(**row["limits"]) if row["limits"] else NO_LIMITS,
        issuer=row["issuer"],
        has_password=row["password"] is not None,
    )


def _invite(row: Mapping[Any, Any]) -> Invite:
    names = ("id", "role", "note", "created_by", "created_at", "expires_at")
    return Invite(**{name: row[name] for name in names})
