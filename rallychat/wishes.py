"""How a request, or one answer of a conversation, wants its context kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rallychat.messages import Message
from rallychat.store import Conversation, StoredMessage
from rallychat.store.types import Mark

_UNDATED = datetime.min.replace(tzinfo=UTC)
"""Of messages that came without a date; quotes of them bear none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a request that stores nothing wants its context kept. Messages are named by their index.

    Args:
        strategy: its name.
        budget: most tokens of the prompt; None: what the window allows.
    """

    strategy: str
    budget: int | None = None
    pin: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()

    def row(self, index: int, message: Message) -> StoredMessage:
        """A message of the request, as if it were stored."""
        return StoredMessage.unstored(
            str(index),
            message.role,
            message.parts,
            created_at=_UNDATED,
            mark="exclude" if index in self.exclude else "pin" if index in self.pin else None,
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """How one answer of a conversation wants its context kept, in place of what holds there. Messages by id."""

    strategy: str | None = None
    budget: int | None = None
    pin: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    elsewhere: bool | None = None
    instructions: str | None = None
    """The system prompt."""

    def told(self, conversation: Conversation) -> Conversation:
        """The conversation with the system prompt that it has for this answer."""
        return conversation if self.instructions is None else replace(conversation, system=self.instructions)

    def marking(self, path: Sequence[StoredMessage]) -> list[StoredMessage]:
        """The messages with the marks that they have for this answer."""
        return [self._marked(row) for row in path] if self.pin or self.exclude else list(path)

    def _marked(self, row: StoredMessage) -> StoredMessage:
        mark: Mark | None = "exclude" if row.id in self.exclude else "pin" if row.id in self.pin else row.mark
        return row if mark == row.mark else replace(row, mark=mark)


AS_EVER = Wish()
"""As the conversation has it."""


@dataclass(frozen=True, slots=True)
class Habit:
    """How the newest answer of a conversation was asked for; the next one likely will be, too.

    Args:
        model: its id, whichever the conversation's own was then: `instead_of`.
        max_tokens: of the answer.
    """

    model: str
    instead_of: str | None
    max_tokens: int | None
    wish: Wish = AS_EVER

    def as_json(self) -> dict[str, Any]:
        """As it is stored."""
        return _HABIT.dump_python(self, mode="json", exclude_defaults=True)  # type: ignore[no-any-return]

    @classmethod
    def stored(cls, written: Mapping[str, Any] | None) -> Habit | None:
        """What was stored; None where nothing was, or by a version that wrote it otherwise."""
        try:
            return None if written is None else _HABIT.validate_python(written)
        except ValidationError:
            return None


_HABIT = TypeAdapter(Habit)
