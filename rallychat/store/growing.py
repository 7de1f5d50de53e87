"""Answers that grow, as other processes than their owner see them; and how those ask the owner to stop."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select, update

from rallychat.store import codec, queries
from rallychat.store.database import Database
from rallychat.store.owners import Owner
from rallychat.store.tables import messages, responses
from rallychat.store.types import Grown
from rallychat.store.whole import whole


class GrowingStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database = database
        self._owner = owner

    @whole
    async def get(self, message_id: str) -> Grown:
        """An answer as far as it is stored.

        Raises:
            NotFound: there is none.
        """
        async with self._database.read() as db:
            row = await queries.message_row(db, message_id)
            cuts = await db.scalars(select(responses.c.cuts).where(responses.c.message_id == message_id))
            told = cuts.one_or_none()
        mine = row["owner"] == self._owner.id
        return Grown(codec.message_from(row), None if told is None else tuple(told), mine)

    async def changed(self, message_id: str) -> None:
        """Returns when more of it may be stored."""
        await self._database.wait(message_id)

    @whole
    async def ask_to_stop(self, message_id: str) -> None:
        """Asks the process that makes an answer to end it where it is."""
        async with self._database.write() as db:
            await queries.message_row(db, message_id)
            this = (messages.c.id == message_id) & (messages.c.status == "running")
            await db.execute(update(messages).where(this).values(stop_at=datetime.now(UTC)))

    @whole
    async def asked_to_stop(self, message_ids: Sequence[str]) -> list[str]:
        """Those of these answers that somebody asked to end, or whose conversation is gone or in the trash."""
        if not message_ids:
            return []
        async with self._database.read() as db:
            wanted = messages.c.id.in_(message_ids) & messages.c.stop_at.is_(None) & queries.not_in_trash()
            still = set(await db.scalars(select(messages.c.id).where(wanted)))
        return [name for name in message_ids if name not in still]
