"""The messages of a branch as strategies see them. A message that has not changed is not read a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rallychat.context import log as token_log
from rallychat.context.types import Turn
from rallychat.recent import Recent
from rallychat.store import StoredMessage
from rallychat.store.branches import MOST

TurnsOf = Callable[[Sequence[StoredMessage], str], list[Turn]]
"""Makes the turns of a branch; the second argument names the token log they are counted in."""


def turns_of(path: Sequence[StoredMessage], base: str = "") -> list[Turn]:
    """The messages of a branch; tokens estimated where their log is another than `base`."""
    return [_turn(row, base) for row in path]


class Turns:
    """The turns of the conversations that were planned last: of as many messages as the store keeps, for what it has
    forgotten it gives as another one."""

    def __init__(self) -> None:
        self._known: Recent[str, dict[str, tuple[StoredMessage, str, Turn]]] = Recent(MOST, size=len)

    def of(self, conversation_id: str, path: Sequence[StoredMessage], base: str) -> list[Turn]:
        """As `turns_of`. Messages are told apart by identity: the store gives the same one until it changes."""
        known = self._known.get(conversation_id, {})
        found: dict[str, tuple[StoredMessage, str, Turn]] = {}
        for row in path:
            before = known.get(row.id)
            is_known = before is not None and before[0] is row and before[1] == base
            found[row.id] = before if before and is_known else (row, base, _turn(row, base))
        self._known[conversation_id] = found
        return [turn for _, _, turn in found.values()]


def _turn(row: StoredMessage, base: str) -> Turn:
    return Turn(
        id=row.id,
        role=row.role,
        text=row.text,
        tokens=_tokens(row, base),
        date=row.created_at if row.created_at.year > 1 else None,
        pinned=row.mark == "pin",
        excluded=row.mark == "exclude",
    )


def _tokens(row: StoredMessage, base: str) -> int:
    if row.span is None:
        return len(row.text) // 4 + 8
    tokens = len(row.span.ids)
    if row.span.quoted and not token_log.quoted_in(row, base):
        tokens = tokens * (len(row.text) + 1) // (len(row.text) + len(row.span.quoted) + 1)
    return tokens
