"""The values of context management. A turn is one message; a budget is in tokens; a memory is frozen text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rallychat.messages import Role
from rallychat.store.types import Memory, MemoryKind

HIGH_MARK = 0.72
"""Share of the budget at which older turns are compacted. Until then a prompt only grows."""
LOW_MARK = 0.30
"""Share of the high mark that the kept turns fill after a compaction."""
LOW_BY_SPEED = 0.20
"""The same where the mark is set by speed: it comes often there, and what is kept has to be read each time."""
MEMORY_SHARE = 0.20
"""Share of the high mark that the memory may fill."""
CEILING = 3
"""Times a high mark set by speed that a prompt may reach where no idle time comes. Making room then costs a person one
slow turn; three times is where that is rare and reading behind so long a prompt is not slow yet."""
WORTH = 0.25
"""Share of the high mark that must leave for a compaction to be worth it."""
RETRIEVED_SHARE = 0.25
"""Share of the budget that quotes of older turns may fill."""
SLOW = 1.0
"""Milliseconds a token from which on reading quotes is felt: then only sure ones stand in the prompt."""
QUOTED, MOST_QUOTED = 600.0, 120
"""Milliseconds that reading quotes may take there, and tokens that they may have."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a branch. `tokens` is what it adds to the prompt, estimated where it was never in one."""

    id: str
    role: Role
    text: str
    tokens: int
    date: datetime | None = None
    pinned: bool = False
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model reads on this machine.

    Args:
        reading: milliseconds a token.
        limit: the prompt length up to which it answers as fast as at the beginning; None: any.
        why: that in a sentence.
    """

    reading: float
    limit: int | None = None
    why: str = ""


def answer_reserve(window: int, max_tokens: int | None) -> int:
    """Tokens of the window kept free for the answer: what was asked, at most half; a quarter if nothing was."""
    return min(max_tokens, window // 2) if max_tokens else min(1024, window // 4)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a prompt may be, and why.

    Args:
        window: tokens the engine holds, prompt and answer together.
        answer: kept free for the answer.
        safety: kept free for what counting cannot know.
        fixed: tokens of the system prompt, which always stays.
        asked: a person's own limit for the prompt.
        latency: the prompt length up to which this machine answers as fast as at the beginning, if measured.
        latency_why: that measurement in a sentence.
        reading: milliseconds a token takes to be read here, if measured.
    """

    window: int
    answer: int
    safety: int = 0
    fixed: int = 0
    asked: int | None = None
    latency: int | None = None
    latency_why: str = ""
    reading: float | None = None
    lead: int = 0
    """Tokens that the prompt will have gained before room that is made now is there: it is made so much earlier."""

    @property
    def limit(self) -> int:
        """The hard limit of a prompt, system prompt included."""
        room = max(1, self.window - self.answer - self.safety)
        return room if self.asked is None else min(room, self.asked)

    @property
    def mark(self) -> int:
        """The length of a prompt, system prompt included, from which on older turns are compacted."""
        mark = int(self.limit * HIGH_MARK)
        return mark if self.latency is None else max(1, min(mark, self.latency))

    @property
    def usable(self) -> int:
        """The hard limit of what a strategy chooses from: memory and turns."""
        return max(1, self.limit - self.fixed)

    @property
    def ceiling(self) -> int:
        """What memory and turns may have where no idle time came to compact them."""
        return self.usable if self.latency is None else min(self.usable, CEILING * self.high)

    @property
    def high(self) -> int:
        """The high mark for memory and turns."""
        return max(1, self.mark - self.fixed)

    @property
    def due(self) -> int:
        """Memory and turns that are more than this make room."""
        return self.high - self.lead

    @property
    def low(self) -> int:
        """The low mark: what the kept turns fill after a compaction."""
        return int(self.high * (LOW_MARK if self.latency is None else LOW_BY_SPEED))

    @property
    def memory(self) -> int:
        """Tokens the memory may have."""
        return int(self.high * MEMORY_SHARE)

    @property
    def retrieved(self) -> int:
        """Tokens the quotes of older turns may have."""
        room = int((self.limit if self.latency is None else self.mark) * RETRIEVED_SHARE)
        return min(room, MOST_QUOTED, int(QUOTED / self.reading)) if self.reading and self.slow else room

    @property
    def slow(self) -> bool:
        """Reading quotes is felt here."""
        return self.reading is not None and self.reading > SLOW

    @property
    def why(self) -> str:
        """What set the marks, in a sentence."""
        if self.latency is not None and self.mark == self.latency:
            return self.latency_why or f"answers begin as fast as at first up to {self.latency} tokens here"
        if self.asked is not None and self.asked == self.limit:
            return f"a budget of {self.asked} tokens was asked for"
        return f"the window of {self.window:,} tokens less {self.answer:,} for the answer"


@dataclass(frozen=True, slots=True)
class Selection:
    """What goes into a prompt.

    `memory` stands for the turns up to its `until`; `kept` are ids of turns that stand word by word, in order.
    Everything else is left out: `compacted` where the memory covers it, else `dropped`. `fresh`: the memory was
    made just now and belongs into the store.
    """

    memory: Memory | None
    kept: tuple[str, ...]
    compacted: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    """Excluded ones whose place stays, empty, because their exchange is pinned."""
    why: str = ""
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """What a model wrote is not used as a memory."""

    reason: str


@dataclass(frozen=True, slots=True)
class Compaction:
    """Older turns that are to become memory, in idle time. Proposed only past the high mark.

    Where `ask` is empty no model is needed: `rules` is the new memory. Else `ask` is said to the model as a
    user's message right after the live prompt, so that all of it is cached; `check` makes the answer a memory,
    and where it refuses, `rules` is used.

    Args:
        until: the newest message that goes into the memory.
        max_tokens: bounds the model's answer.
        rules: the memory made by rules.
        why: for the report.
        check: text of the answer, and whether it ended by itself.
    """

    until: str
    rules: Memory
    why: str
    ask: str = ""
    max_tokens: int = 0
    check: Callable[[str, bool], Memory | Refused] = lambda _text, _ended: Refused("no model was asked")


class Strategy(Protocol):
    """Decides which turns a prompt holds. Pure: the same turns give the same prompt.

    Both methods get the whole branch, oldest first. For `select` its last turn is what is to be answered. Between
    two compactions `select` must keep what it kept, so that each prompt begins with the one before.
    """

    @property
    def name(self) -> str:
        """As people choose it."""

    @property
    def retrieves(self) -> bool:
        """Older turns that fit the question are quoted beside it."""

    def select(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Selection:
        """What goes into the prompt. `memory` is the newest stored one of this branch."""

    def compact(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Compaction | None:
        """What is to be compacted once the last turn is answered; None while the prompt is short enough."""


__all__ = [
    "Budget",
    "Compaction",
    "Memory",
    "MemoryKind",
    "Refused",
    "Selection",
    "Strategy",
    "Turn",
]
