"""What a memory in the making is held to: if one of these is another by the time it is written, it is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rallychat.catalog import Model
from rallychat.store import Conversation, Memory, StoredMessage
from rallychat.store.contexts import Versions, versions_of
from rallychat.store.types import Mark
from rallychat.wishes import Wish


class Basis(NamedTuple):
    """What a memory is made of. While it stands the memory does."""

    kept: tuple[str | int | None, ...]
    """Strategy, budget, the conversation's model, the one that answers, and most tokens of its answers."""
    turns: tuple[tuple[str, Mark | None], ...]
    """The messages that it is made of, and their marks: up to where it reaches, or as far as a model reads."""
    versions: Versions


def basis_of(
    conversation: Conversation,
    path: Sequence[StoredMessage],
    made: Sequence[Memory],
    until: str,
    model: Model,
    max_tokens: int | None,
    wish: Wish,
) -> Basis | None:
    """That of a memory made of the messages up to `until`; None where that is not on the `path`.

    Args:
        made: all versions there are.
    """
    at = next((index for index, row in enumerate(path) if row.id == until), None)
    if at is None:
        return None
    strategy, budget = wish.strategy or conversation.strategy, wish.budget or conversation.budget
    kept = (strategy, budget, conversation.model, model.id, max_tokens)
    return Basis(kept, tuple((row.id, row.mark) for row in path[: at + 1]), versions_of(made))
