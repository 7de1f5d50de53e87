"""What the store gives back: frozen values, never rows. Times are aware and in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from rallychat.catalog.types import Sampling
from rallychat.messages import ContextReport, FinishReason, Message, Part, Role, Timings, Usage


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """The token ids one message added to its conversation's token log.

    `key` names the log (model, template, …): ids are only worth reusing under the key they were made with.
    """

    key: str
    ids: tuple[int, ...]
    quoted: str = ""
    """Text of older turns that stands before the message in the prompt; `ids` hold it too."""


Mark = Literal["pin", "exclude"]
"""A person's word on a message: it never leaves the prompt, or never enters it."""
MemoryKind = Literal["cut", "ledger", "facts", "summary"]
"""What a memory is made of: nothing (older turns just left), the user's own words, facts, a summary."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Frozen text that stands for the older turns of a branch. Every change is a new version; none is lost.

    It belongs to the message `until`, the newest it covers: branches that do not go through that message do
    not have it. `covers` are the messages whose content is in the text; older ones beside them were dropped.
    """

    kind: MemoryKind
    text: str
    until: str
    covers: tuple[str, ...] = ()
    edited_by: Literal["rules", "model", "user"] = "rules"
    why: str = ""
    version: int = 0
    """Counts up within a conversation; 0: not stored."""
    active: bool = True
    """False: undone by a person."""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of messages; `tip_id` is the end of the branch a person sees, None while there is no message."""

    id: str
    title: str
    system: str
    model: str | None
    sampling: Sampling
    tip_id: str | None
    created_at: datetime
    updated_at: datetime
    """When a message was last begun or ended; renaming does not move a conversation up the list."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What an API client noted on it."""
    listed: bool = True
    """Shown among the conversations; False for one that only holds a chain of responses."""
    strategy: str | None = None
    """How its context is kept short, by name; None: as its model's class says."""
    budget: int | None = None
    """Most tokens of a prompt; None: what the window allows."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One node of the tree. An answer is `running` from `begin` or `resume` until `finish`."""

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    parts: tuple[Part, ...]
    model: str | None
    """The model that answered; None for a person's message."""
    status: Literal["complete", "running"]
    finish_reason: FinishReason | None
    error: str | None
    usage: Usage | None
    timings: Timings | None
    report: ContextReport | None
    """Reports grow with the conversation, so `path` gives only that of its last message."""
    span: TokenSpan | None
    created_at: datetime
    mark: Mark | None = None

    @property
    def message(self) -> Message:
        """The message as a model sees it."""
        return Message(self.role, self.parts)

    @property
    def text(self) -> str:
        """What is said, reasoning left out."""
        return self.message.text


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer that was asked for through the Responses API, with what was asked."""

    answer: StoredMessage
    request: Mapping[str, Any]
    """What its `Response` object repeats of the request, and `input`: the ids of the messages it brought."""
    cuts: tuple[int, ...] | None
    """Lengths of the deltas the answer was told in; None while it grows."""

    @property
    def id(self) -> str:
        """Its name in the API: that of its message, but for the prefix."""
        return response_id(self.answer.id)


def response_id(message_id: str) -> str:
    """`msg_0643…` -> `resp_0643…`."""
    return f"resp_{message_id.removeprefix('msg_')}"
