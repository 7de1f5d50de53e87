"""What people prove with who they are: sessions of browsers, and API keys. Both by hash; no secret is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Table, delete, insert, select, update

from rallychat.errors import NotFound, StoreError
from rallychat.identity import LOCAL_USER, Person, Role
from rallychat.store.account_tables import api_keys, sessions, users
from rallychat.store.account_types import ApiKey, Session, User
from rallychat.store.database import Database
from rallychat.store.deeds import note
from rallychat.store.ids import new_id
from rallychat.store.whole import Again, whole
from rallychat.unset import UNSET, Unset

log = logging.getLogger(__name__)

NOTED: Final = timedelta(minutes=1)
"""How exact the time is when something was last used: it costs a write."""


class CredentialStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- sessions -----------------------------------------------------------------------------------------

    @whole
    async def begin(
        self,
        user_id: str,
        hashed: str,
        *,
        device: str,
        address: str,
        expires_at: datetime,
        password: str | Unset | None = UNSET,
    ) -> Session | None:
        """A new session of a user, who is seen by this. What has expired goes.

        Args:
            password: the hash of the one that was proven, if it was one.

        Returns:
            None: the user is disabled or gone, or has another password by now.
        """
        now = datetime.now(UTC)
        row = {"id": new_id("sess"), "user_id": user_id, "device": device, "address": address}
        row |= {"created_at": now, "seen_at": now, "expires_at": expires_at}  # type: ignore[dict-item]
        good = [users.c.id == user_id, ~users.c.disabled]
        good += [] if password is UNSET else [users.c.password == password]
        async with self._database.write() as db:
            # locked: who logs this user out everywhere comes before, or finds the session
            if (await db.scalars(select(users.c.id).where(*good).with_for_update())).first() is None:
                return None
            await db.execute(delete(sessions).where(sessions.c.expires_at <= now))
            await db.execute(insert(sessions).values(**row, hash=hashed))
            await db.execute(update(users).where(users.c.id == user_id).values(seen_at=now))
        return _session(row)

    @whole
    async def session(self, hashed: str, *, idle: timedelta) -> tuple[Session, Person] | None:
        """Whose session a token is; None if it is nobody's (any more), or its user is disabled."""
        now = datetime.now(UTC)
        good = (sessions.c.hash == hashed, sessions.c.expires_at > now, sessions.c.seen_at > now - idle)
        joined = sessions.join(users, sessions.c.user_id == users.c.id)
        wanted = select(sessions, users.c.role).select_from(joined).where(*good, ~users.c.disabled)
        async with self._database.read() as db:
            row = (await db.execute(wanted)).mappings().one_or_none()
        if row is None:
            return None
        if row["seen_at"] < now - NOTED:
            await self._seen(sessions, row["id"], row["user_id"], {"seen_at": now})
        return _session(row), Person(row["user_id"], row["role"], "session")

    @whole
    async def sessions(self, user_id: str) -> list[Session]:
        """Where a user is logged in, the newest first."""
        good = (sessions.c.user_id == user_id, sessions.c.expires_at > datetime.now(UTC))
        wanted = select(sessions).where(*good).order_by(sessions.c.id.desc())
        async with self._database.read() as db:
            return [_session(row) for row in (await db.execute(wanted)).mappings()]

    @whole
    async def end(self, user_id: str, session_id: str) -> None:
        """Ends a session of this user.

        Raises:
            NotFound: they have none of this id.
        """
        this = (sessions.c.id == session_id, sessions.c.user_id == user_id)
        async with self._database.write() as db:
            if not (await db.execute(delete(sessions).where(*this))).rowcount:
                raise NotFound("session", session_id)

    @whole
    async def log_out(self, user: User, session_id: str | None = None) -> int:
        """Ends a session of somebody else's, or (None) all, which is noted; returns how many.

        Raises:
            NotFound: they have none of this id.
        """
        this = [sessions.c.user_id == user.id]
        this += [] if session_id is None else [sessions.c.id == session_id]
        async with self._database.write() as db:
            ended = (await db.execute(delete(sessions).where(*this))).rowcount
            if session_id is not None and not ended:
                raise NotFound("session", session_id)
            await note(db, "user.logout", user.name, sessions=ended)
        return ended

    # --- keys ---------------------------------------------------------------------------------------------

    @whole
    async def add_key(
        self,
        user_id: str,
        hashed: str,
        *,
        name: str,
        prefix: str,
        scopes: Sequence[str],
        expires_at: datetime | None,
    ) -> ApiKey:
        """A new key of a user."""
        row: dict[str, Any] = {"id": new_id("key"), "user_id": user_id, "name": name, "prefix": prefix}
        row |= {"scopes": list(scopes), "created_at": datetime.now(UTC), "expires_at": expires_at}
        row |= {"revoked_at": None, "used_at": None}
        async with self._database.write() as db:
            await db.execute(insert(api_keys).values(**row, hash=hashed))
            await note(db, "key.add", row["id"], prefix=prefix, scopes=list(scopes), user=user_id)
        return _key(row)

    @whole
    async def key(self, hashed: str) -> tuple[ApiKey, Person | None] | None:
        """The key of this hash, and who may act with it: nobody, if their account is disabled or gone."""
        joined = api_keys.outerjoin(users, api_keys.c.user_id == users.c.id)
        wanted = select(api_keys, users.c.role, users.c.disabled).select_from(joined)
        async with self._database.read() as db:
            row = (await db.execute(wanted.where(api_keys.c.hash == hashed))).mappings().one_or_none()
        if row is None:
            return None
        key, now = _key(row), datetime.now(UTC)
        role: Role | None = "admin" if key.user_id == LOCAL_USER else row["role"]
        if role is None or row["disabled"] or not key.is_good(now):
            return key, None
        if key.used_at is None or key.used_at < now - NOTED:
            await self._seen(api_keys, key.id, key.user_id, {"used_at": now})
        return key, Person(key.user_id, role, "key", frozenset(key.scopes), key.id)

    @whole
    async def keys(self, user_id: str | None) -> list[ApiKey]:
        """The keys of a user, or (None) of everybody; the newest first, revoked ones among them."""
        wanted = select(api_keys).order_by(api_keys.c.id.desc())
        if user_id is not None:
            wanted = wanted.where(api_keys.c.user_id == user_id)
        async with self._database.read() as db:
            return [_key(row) for row in (await db.execute(wanted)).mappings()]

    @whole
    async def revoke(self, key_id: str, *, user_id: str | None) -> ApiKey:
        """Makes a key (of this user, if one is given) useless for good.

        Raises:
            NotFound: there is no such key.
        """
        this = api_keys.c.id == key_id
        if user_id is not None:
            this &= api_keys.c.user_id == user_id
        async with self._database.write() as db:
            row = (await db.execute(select(api_keys).where(this))).mappings().one_or_none()
            if row is None:
                raise NotFound("key", key_id)
            now = row["revoked_at"] or datetime.now(UTC)
            await db.execute(update(api_keys).where(this).values(revoked_at=now))
            await note(db, "key.revoke", key_id, prefix=row["prefix"], user=row["user_id"])
        return _key({**row, "revoked_at": now})

    async def _seen(self, table: Table, one: str, user_id: str, times: Mapping[str, datetime]) -> None:
        """Notes when it was last used. A full disk keeps nobody out, who may want to read, or to make room."""
        try:
            async with self._database.write("growing") as db:
                await db.execute(update(table).where(table.c.id == one).values(**times))
                now = next(iter(times.values()))
                await db.execute(update(users).where(users.c.id == user_id).values(seen_at=now))
        except Again:
            raise
        except StoreError as exc:
            log.warning("it could not be noted that somebody was here: %s", exc)


def _session(row: Mapping[Any, Any]) -> Session:
    names = ("id", "user_id", "device", "address", "created_at", "seen_at", "expires_at")
    return Session(**{name: row[name] for name in names})


def _key(row: Mapping[Any, Any]) -> ApiKey:
    names = ("id", "user_id", "name", "prefix", "created_at", "expires_at", "revoked_at", "used_at")
    return ApiKey(**{name: row[name] for name in names}, scopes=tuple(row["scopes"]))
