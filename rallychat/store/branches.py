"""Branches, read again and again: what was read of a conversation once is not read a second time.

A message is settled as soon as the one below it is complete. Whatever changes a settled message raises its
conversation's `revision` in the same transaction, in whichever process (`queries.changed`). So while the revision
stands, a branch is what was kept of it and the few messages below that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.recent import Recent
from rallychat.store import codec, queries
from rallychat.store.types import StoredMessage

MOST = 4000
"""Messages kept over all conversations, about 12 MB; the conversation read longest ago is forgotten first."""
FEW = 4
"""Messages read below what is kept: the question, the answer before it, and one more exchange for those who watch."""
AT_ONCE = 200
"""Messages decoded before others have their turn."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The settled messages of one branch, oldest first; `places` is where each stands in it."""

    revision: int
    rows: Sequence[StoredMessage]
    places: dict[str, int]

    def above(self, message: StoredMessage) -> Sequence[StoredMessage] | None:
        """What stands above a message; None if that is not known here."""
        if message.parent_id is None:
            return ()
        at = self.places.get(message.parent_id)
        return None if at is None else self.rows[: at + 1]


class Branches:
    """The branches read last, one of each conversation."""

    def __init__(self) -> None:
        self._kept: Recent[str, _Kept] = Recent(MOST, size=lambda kept: len(kept.rows))

    async def read(self, db: AsyncConnection, conversation: dict[str, Any], tip: str) -> list[StoredMessage]:
        """The branch that ends at `tip`, oldest first; empty if there is no such message here.

        Args:
            conversation: its row, as this transaction sees it.
        """
        chat, revision = conversation["id"], conversation["revision"]
        kept = self._kept.get(chat)
        branch = None
        if kept is not None and kept.revision == revision:
            newest = await _read(db, chat, tip, most=FEW)
            above = kept.above(newest[0]) if newest else None
            branch = [*above, *newest] if above is not None else None
        if branch is None:
            branch = await _read(db, chat, tip)
        self._keep(chat, revision, branch)
        return branch

    def _keep(self, chat: str, revision: int, branch: Sequence[StoredMessage]) -> None:
        settled = [row for row, below in pairwise(branch) if row.status == below.status == "complete"]
        kept = self._kept.pop(chat, None)
        if kept is None or kept.revision != revision or not _is_longer(kept, settled):
            kept = _Kept(revision, settled, {row.id: place for place, row in enumerate(settled)})
        self._kept[chat] = kept


def _is_longer(kept: _Kept, settled: Sequence[StoredMessage]) -> bool:
    return not settled or kept.places.get(settled[-1].id) is not None


async def _read(db: AsyncConnection, chat: str, tip: str, *, most: int | None = None) -> list[StoredMessage]:
    asked = {"chat": chat, "tip": tip} | ({} if most is None else {"most": most})
    rows = await db.execute(queries.branch_query(whole=most is None), asked)
    read: list[StoredMessage] = []
    for row in rows.mappings():
        read.append(codec.message_from(row))
        if len(read) % AT_ONCE == 0:
            await asyncio.sleep(0)  # thousands of messages are read without holding up anybody's stream
    return read
