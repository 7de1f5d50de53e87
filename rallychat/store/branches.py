"""Branches, read again and again: messages that have not changed are not decoded twice.

A message counts as unchanged while its stamp is: where it hangs, its state, its marks, and the lengths of what is
long. Whatever writes changes one of these, another process too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.store import codec, queries
from rallychat.store.tables import messages
from rallychat.store.types import StoredMessage

MOST = 4000
"""Messages remembered; those read longest ago are forgotten first."""
_STAMP = (
    messages.c.id,
    messages.c.parent_id,
    messages.c.status,
    messages.c.finish_reason,
    messages.c.mark,
    messages.c.span_key,
    func.length(messages.c.span_ids).label("ids"),
    func.length(cast(messages.c.parts, Text)).label("said"),
)


class Branches:
    """The messages read last, by id."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Any, ...], StoredMessage]] = {}

    async def read(self, db: AsyncConnection, conversation_id: str, tip: str) -> list[StoredMessage]:
        """The branch that ends at `tip`, oldest first; empty if there is no such message here."""
        stamps = (await db.execute(queries.path_query(conversation_id, tip, _STAMP))).all()
        fresh = [row.id for row in stamps if row.id == tip or not self._is_known(row.id, tuple(row))]
        held = {
            row.id: self._known[row.id][1] for row in stamps if row.id in self._known
        }  # others may drop it
        read = held | await self._read(db, fresh, tip)
        found: list[StoredMessage] = []
        for row in stamps:
            message = read[row.id]
            self._known.pop(row.id, None)
            if row.id != tip and message.status == "complete":
                self._known[row.id] = (tuple(row), message)
            found.append(message)
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return found

    def _is_known(self, message_id: str, stamp: tuple[Any, ...]) -> bool:
        known = self._known.get(message_id)
        return known is not None and known[0] == stamp

    async def _read(self, db: AsyncConnection, ids: Sequence[str], tip: str) -> dict[str, StoredMessage]:
        read: dict[str, StoredMessage] = {}
        for start in range(0, len(ids), 200):
            some = messages.c.id.in_(ids[start : start + 200])
            rows = await db.execute(select(*queries.message_columns(tip)).where(some))
            read |= {row["id"]: codec.message_from(row) for row in rows.mappings()}
            await asyncio.sleep(0)  # thousands of messages are read without holding up anybody's stream
        return read
