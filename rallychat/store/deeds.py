"""The audit log: each change to people and keys is noted in the transaction that makes it, what is done to models
behind it. Never a secret.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.identity import current
from rallychat.store.account_tables import api_keys, deeds, invites, users
from rallychat.store.account_types import Deed, actor_name
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.whole import whole


async def note(db: AsyncConnection, action: str, target: str, **detail: Any) -> None:
    """Writes down what the person of this request does."""
    actor = current().id
    name = (await db.scalars(select(users.c.name).where(users.c.id == actor))).one_or_none()
    row = {"id": new_id("deed"), "at": datetime.now(UTC), "actor": actor, "action": action}
    row |= {"actor_name": actor_name(actor, name), "target": target[:100], "detail": detail}
    await db.execute(insert(deeds).values(**row))


class DeedStore:
    """Made by `ConversationStore`, whose promises hold here too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def add(self, action: str, target: str) -> None:
        """Notes what was done to something that is in no table."""
        async with self._database.write() as db:
            await note(db, action, target)

    @whole
    async def list(self, *, limit: int = 100, before: str | None = None) -> list[Deed]:
        """The newest first; `before` (an id) goes on after that one."""
        name = func.coalesce(api_keys.c.name, invites.c.note).label("name")
        owner = func.coalesce(users.c.name, api_keys.c.user_id).label("owner")
        named = deeds.outerjoin(api_keys, api_keys.c.id == deeds.c.target)
        named = named.outerjoin(invites, invites.c.id == deeds.c.target)
        named = named.outerjoin(users, users.c.id == api_keys.c.user_id)
        wanted = select(deeds, name, owner).select_from(named).order_by(deeds.c.id.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(deeds.c.id < before)
        async with self._database.read() as db:
            return [Deed(**row) for row in (await db.execute(wanted)).mappings()]
