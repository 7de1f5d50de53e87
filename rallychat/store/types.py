"""What the store gives back: frozen values, never rows. Times are aware and in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from rallychat.catalog.types import Sampling
from rallychat.messages import ContextReport, FinishReason, Message, Part, Role, Timings, Usage, text_of


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

    It stands for the messages up to `until`. `covers` are those whose content is in the text: where a model wrote it,
    newer ones, too. Branches that lack one of these do not have it. Older ones beside them were dropped.
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
    elsewhere: bool | None = None
    """Whether other conversations are quoted; None: as the server is set."""
    pinned: bool = False
    archived: bool = False
    folder: str | None = None
    deleted_at: datetime | None = None
    """In the trash since."""
    answering: str | None = None
    """The answer that is being made on its branch in view, in whichever process."""
    asked: Mapping[str, Any] | None = None
    """How its newest answer was asked for, where that was not as it is set."""


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
    error_code: str | None = None
    """The code of the error, of those in `rallychat.errors`."""

    @classmethod
    def unstored(
        cls,
        message_id: str,
        role: Role,
        parts: tuple[Part, ...] = (),
        *,
        created_at: datetime,
        model: str | None = None,
        status: Literal["complete", "running"] = "complete",
        mark: Mark | None = None,
    ) -> StoredMessage:
        """A message as if it were stored, of a request that stores nothing."""
        return cls(
            id=message_id,
            conversation_id="",
            parent_id=None,
            role=role,
            parts=parts,
            model=model,
            status=status,
            finish_reason=None,
            error=None,
            usage=None,
            timings=None,
            report=None,
            span=None,
            created_at=created_at,
            mark=mark,
        )

    @property
    def message(self) -> Message:
        """The message as a model sees it."""
        return Message(self.role, self.parts)

    @property
    def text(self) -> str:
        """What is said, reasoning left out."""
        return text_of(self.parts)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer that was asked for through the Responses API, with what was asked."""

    answer: StoredMessage
    request: Mapping[str, Any]
    """What its `Response` object repeats of the request, and `input`: the ids of the messages it brought."""
    cuts: tuple[int, ...] | None
    """Lengths of the deltas the answer was told in, as far as it is stored; None before the first."""

    @property
    def id(self) -> str:
        """Its name in the API: that of its message, but for the prefix."""
        return response_id(self.answer.id)


@dataclass(frozen=True, slots=True)
class Grown:
    """An answer as far as it is stored, with the lengths of the deltas it was told in, where they are kept."""

    answer: StoredMessage
    cuts: tuple[int, ...] | None
    is_mine: bool
    """This process makes it."""


def response_id(message_id: str) -> str:
    """`msg_0643…` -> `resp_0643…`."""
    return f"resp_{message_id.removeprefix('msg_')}"


def message_of(response: str) -> str:
    """`resp_0643…` -> `msg_0643…`."""
    return f"msg_{response.removeprefix('resp_')}"


@dataclass(frozen=True, slots=True)
class Hit:
    """A place where something was found. `message` is None where the title alone has it."""

    conversation: Conversation
    message: StoredMessage | None
    snippet: str
    marks: tuple[tuple[int, int], ...]
    """Where in the snippet the words stand, as [from, to)."""


@dataclass(frozen=True, slots=True)
class Share:
    """A link that shows a branch, as far as it went then, to whoever has it."""

    id: str
    conversation_id: str
    tip_id: str
    token: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Persona:
    """Who a model is to be: what a new conversation begins with."""

    id: str
    name: str
    system: str
    model: str | None
    sampling: Sampling
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Entire:
    """A conversation with the messages of every branch, parents before children, and every version of its memory."""

    conversation: Conversation
    messages: tuple[StoredMessage, ...]
    memories: tuple[Memory, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended, and what it took."""

    reason: FinishReason = "stop"
    error: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class ImportedMessage:
    """One node of a tree from elsewhere. `parent` is the place of its parent in the list, None of a root.

    `repr` shows what it says: by that an import knows again what has no name.
    """

    role: Role
    parts: tuple[Part, ...]
    parent: int | None
    model: str | None = None
    created_at: datetime | None = None
    name: str = field(default="", repr=False)
    """What memories call it."""
    end: Ending | None = field(default=None, repr=False)
    """Of an answer; None: it is not known, so it counts as complete."""
    mark: Mark | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation from elsewhere; parents stand before their children. `tip`: the end of the branch in view."""

    origin: str
    title: str
    messages: tuple[ImportedMessage, ...]
    tip: int | None
    system: str = ""
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    pinned: bool = False
    archived: bool = False
    folder: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    strategy: str | None = None
    budget: int | None = None
    elsewhere: bool | None = None
    memories: tuple[Memory, ...] = ()
    """Oldest first; messages by their `name`."""
    deleted_at: datetime | None = None
