"""Messages, the events of a turn, and what a turn cost. Values only: nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled", "interrupted", "error"]
"""Why an answer ended: the model stopped, a token limit, a person, a dead engine or server, a failure."""
ENDED_EARLY: Final[Mapping[FinishReason, str]] = {
    "length": "Token limit reached.",
    "cancelled": "Stopped.",
    "interrupted": "Interrupted.",
    "error": "This answer failed.",
}
"""What is said of an answer that is not whole."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is said."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a reasoning model thinks before it speaks; shown folded, not part of the answer."""

    text: str
    kind: Literal["reasoning"] = "reasoning"


Part = Text | Reasoning
"""One part of a message. Tool calls, tool results and images join this union when they are built."""


def text_of(parts: Sequence[Part]) -> str:
    """All text parts joined, reasoning left out."""
    return "".join([part.text for part in parts if isinstance(part, Text)])


@dataclass(frozen=True, slots=True)
class Message:
    """One message as a model sees it."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """A message of one text part."""
        return cls(role, (Text(text),))

    @property
    def text(self) -> str:
        """What is said, reasoning left out."""
        return text_of(self.parts)

    @property
    def reasoning(self) -> str:
        """All reasoning parts joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` of the prompt were reused from the engine's KV cache.

    `reasoning_tokens` of the completion were thought, not said (tags included).
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one answer, counted from when the request arrived."""

    queued_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to tokenise; in `special` pieces control tokens are recognised, elsewhere they stay text.

    `start`: a prompt begins here. Some tokenizers put a space in front of a text; they may there, and nowhere else.
    """

    text: str
    special: bool = True
    start: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt: what it is, whose message it is, and its tokens."""

    kind: Literal["system", "user", "assistant", "memory", "retrieved", "elsewhere", "generation"]
    message_id: str | None
    tokens: int
    score: float | None = None
    """Of a quoted one: how well it fits the question; higher is better."""
    by: Literal["words", "meaning", "both", ""] = ""
    """Of a quoted one: which search found it."""


@dataclass(frozen=True, slots=True)
class ContextReport:
    """What went into a prompt and what did not, and why. Token counts are the model's own.

    Each message of the branch is in exactly one of `kept`, `compacted`, `dropped` and `excluded`; `retrieved` are
    those of the compacted and dropped that are quoted beside the question.
    """

    strategy: str
    window: int
    budget: int
    prompt_tokens: int
    segments: tuple[Segment, ...] = ()
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    reused_tokens: int = 0
    divergence: str = ""
    """Why the prompt could not continue the previous one, or empty."""
    diverged_at: int | None = None
    """Tokens up to which it is the same as the previous one; None where it continues it, or is the first."""
    compacted: tuple[str, ...] = ()
    left_tokens: tuple[int, ...] = ()
    """Of each of `compacted`, then of `dropped`, as far as it was counted before; 0: it was not."""
    excluded: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    retrieved: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    """Messages of other conversations that are quoted beside the question."""
    why: str = ""
    """What the strategy did, in a sentence."""
    high_mark: int = 0
    """Tokens from which on older turns are compacted."""
    budget_why: str = ""
    memory: int = 0
    """Version of the memory that stood in the prompt; 0: none."""
    evaluated_tokens: int = 0
    """Tokens of the prompt that the engine had to evaluate."""
    background_ms: float = 0.0
    """Time the engine spent on this conversation between the previous answer and this question."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting for a slot; `position` 1 is next. Also of an answer that was paused, which then goes on."""

    position: int
    seconds: float | None = None
    """How long it may take, by how long answers took lately."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being fetched or loaded; `fraction` is 0..1 or None when unknown."""

    model: str
    stage: Literal["download", "load"]
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is on its way to the engine."""

    report: ContextReport


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer; never half a character."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer ended by itself, by a limit or by a person. The last event."""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    report: ContextReport | None = field(default=None, compare=False)
    """What its prompt was made of; not part of how it ended."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ended by a failure; what had arrived is stored. The last event."""

    code: str
    message: str
    hint: str = ""
    retry_after: float | None = None


Event = Queued | Loading | Started | TextDelta | ReasoningDelta | Finished | Failed
"""The closed set of events of a turn, in the order they may come."""
