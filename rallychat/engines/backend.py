"""What a backend inside a worker is: one engine, a fixed number of slots, generation as events.

The worker around it (`rallychat.engines.worker`) does what is the same for all: HTTP, admission, checks of the
request, stop strings. A backend raises errors of `rallychat.errors` only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rallychat.engines.protocol import CompletionRequest, Done, EngineInfo, Piece, Prefill
from rallychat.engines.slots import Slot


@dataclass(frozen=True, slots=True)
class Step:
    """What one or more engine steps added to an answer.

    `ids` are the tokens of exactly this text, or empty where the engine does not tell them; `count` is the number
    of tokens generated so far.
    """

    text: str
    ids: tuple[int, ...]
    count: int


BackendEvent = Prefill | Step | Done


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy of a slot's cache: its bytes, and the milliseconds it took, the wait for a step left out."""

    size: int
    ms: float


class Backend(Protocol):
    """One loaded engine."""

    @property
    def info(self) -> EngineInfo:
        """What the engine is and can do."""
        ...

    @property
    def vocabulary(self) -> int:
        """The number of token ids; valid ones are below it."""
        ...

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """The token ids of each piece, nothing added in front or behind."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of these tokens, control tokens included. All ids are below `vocabulary`."""
        ...

    def generate(self, request: CompletionRequest, slot: Slot) -> AsyncGenerator[BackendEvent]:
        """Answer a checked request in a slot that nobody else uses; ends with Done.

        Closing it returns when the engine has let go of the slot: within one step. Stop strings are not its concern.
        """
        ...

    async def save(self, slot: Slot, name: str) -> Copied:
        """Copies what a slot's cache holds out of it, under a name. Only where `info.offload`.

        Raises:
            EngineRefused: there is no room for it.
        """
        ...

    async def restore(self, slot: Slot, name: str) -> float:
        """Brings a copy back: the slot's cache then holds that and nothing else. Milliseconds, as in `Copied`.

        Raises:
            EngineRefused: the copy cannot be read; the slot holds nothing then.
        """
        ...

    def discard(self, name: str) -> None:
        """Deletes a copy, if there is one."""
        ...
