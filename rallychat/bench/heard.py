"""What people who chat notice: how long they wait for a first token, and from one arrival of text to the next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from rallychat.bench.turns import share
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.errors import EngineInterrupted
from rallychat.messages import Failed, ReasoningDelta, TextDelta


@dataclass(slots=True)
class Heard:
    """Milliseconds. `waiting`: since when, by the monotonic clock, who was not answered yet."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)

    async def turn(self, service: ChatService, chat: str, text: str, *, max_tokens: int) -> None:
        """Says something in a conversation and hears the answer to its end, greedily sampled.

        What the model thinks is heard, too; of an answer without a token its end is.

        Raises:
            EngineInterrupted: there was none.
        """
        at = self.waiting[chat] = time.monotonic()
        run = await service.turn(chat, text, sampling=Sampling(temperature=0.0, max_tokens=max_tokens))
        async with aclosing(run.attach(apart=True)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise EngineInterrupted(event.message, hint=event.hint)
                if isinstance(event, TextDelta | ReasoningDelta):
                    now = time.monotonic()
                    begun = self.waiting.pop(chat, None) is not None
                    (self.first if begun else self.gaps).append((now - at) * 1000)
                    at = now
        if self.waiting.pop(chat, None) is not None:
            self.first.append((time.monotonic() - at) * 1000)

    def given_up(self) -> int:
        """Who still waits counts with what they have waited; returns how many these are."""
        since, self.waiting = list(self.waiting.values()), {}
        self.first += [(time.monotonic() - at) * 1000 for at in since]
        return len(since)

    def row(self, alone: Heard) -> dict[str, Any]:
        """Medians and 95th percentiles, these also against those of another arm."""
        return {
            "median_first_ms": round(statistics.median(self.first)) if self.first else None,
            "p95_first_ms": round(share(self.first, 0.95)) if self.first else None,
            "first_of_alone": _ratio(self.first, alone.first),
            "p95_gap_ms": round(share(self.gaps, 0.95), 1) if self.gaps else None,
            "gap_of_alone": _ratio(self.gaps, alone.gaps),
        }


def _ratio(found: Sequence[float], alone: Sequence[float]) -> float | None:
    return round(share(found, 0.95) / share(alone, 0.95), 3) if found and alone else None
