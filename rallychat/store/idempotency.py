"""Idempotency keys: which request a key belongs to, and what that was answered. They expire, and are bounded."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, true, update

from rallychat.identity import current
from rallychat.store.database import Database
from rallychat.store.owners import Owner
from rallychat.store.tables import idempotency_keys
from rallychat.store.whole import whole

LIFETIME = timedelta(hours=24)
MOST = 10_000
"""Keys of a person that are kept; beyond it the oldest answered ones go before their time."""
LONGEST = 2**20
"""Bytes of one kept answer, compressed."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A key as it stands: who answers it, and what was answered.

    `owner` is None once it is answered: by `response_id`, or by `status` and `body`; a body that was too long
    to be kept is None.
    """

    fingerprint: str
    owner: str | None
    response_id: str | None
    status: int | None
    media_type: str
    body: bytes | None


class KeyStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database = database
        self._owner = owner

    @whole
    async def claim(self, key: str, fingerprint: str) -> Claim | None:
        """Takes a free key for this process (None), or says what stands under it."""
        now = datetime.now(UTC)
        async with self._database.write("growing") as db:
            await db.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at <= now - LIFETIME))
            found = await db.execute(select(idempotency_keys).where(_is(key)))
            if (row := found.mappings().one_or_none()) is not None:
                return _claim(dict(row))
            mine = idempotency_keys.c.user_id == current().id
            counted = select(func.count()).select_from(idempotency_keys).where(mine)
            if (await db.scalars(counted)).one() >= MOST:
                answered = idempotency_keys.c.owner.is_(None)
                age = idempotency_keys.c.created_at
                oldest = select(idempotency_keys.c.key).where(mine, answered).order_by(age).limit(MOST // 100)
                await db.execute(delete(idempotency_keys).where(mine, idempotency_keys.c.key.in_(oldest)))
            row_ = {"user_id": current().id, "key": key, "fingerprint": fingerprint, "created_at": now}
            await db.execute(insert(idempotency_keys).values(**row_, owner=self._owner.id))
        return None

    def is_mine(self, claim: Claim) -> bool:
        """Whether this process answers it."""
        return claim.owner == self._owner.id

    @whole
    async def answer(self, key: str, *, status: int, media_type: str, body: bytes) -> None:
        """Keeps what a request of this key was answered."""
        packed = zlib.compress(body, 1)
        kept = {
            "status": status,
            "media_type": media_type,
            "body": packed if len(packed) <= LONGEST else None,
        }
        async with self._database.write() as db:
            await db.execute(update(idempotency_keys).where(_is(key)).values(**kept, owner=None))

    @whole
    async def release(self, key: str, *, undone: bool = False) -> None:
        """Frees a key whose request was not answered; one that leads to an answer only if that was `undone`."""
        which = true() if undone else idempotency_keys.c.response_id.is_(None)
        async with self._database.write("growing") as db:
            await db.execute(delete(idempotency_keys).where(_is(key), which))


def _is(key: str) -> ColumnElement[bool]:
    return and_(idempotency_keys.c.user_id == current().id, idempotency_keys.c.key == key)


def _claim(row: dict[str, Any]) -> Claim:
    body = None if row["body"] is None else zlib.decompress(row["body"])
    return Claim(
        row["fingerprint"], row["owner"], row["response_id"], row["status"], row["media_type"] or "", body
    )
