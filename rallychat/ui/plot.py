"""A plot over the turns of a conversation: tokens of each prompt, those read anew, and the time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Final

from rallychat.store import StoredMessage
from rallychat.ui.views import seconds

WIDTH: Final = 340.0
"""Of the drawing, in its own units."""
HEIGHT: Final = 96.0
"""Of each of its two halves."""
LEFT: Final = 40.0
"""Where the axes stand."""
_SHOWN: Final = 200
"""Turns drawn; the newest."""


@dataclass(frozen=True, slots=True)
class TurnPoint:
    """One answer. Places are in the units of the drawing, from the top left of its half."""

    number: int
    prompt: int
    evaluated: int
    first_ms: float
    x: float
    prompt_y: float
    evaluated_y: float
    first_y: float

    @property
    def first(self) -> str:
        """The time to its first token, in words."""
        return seconds(self.first_ms)

    @property
    def told(self) -> str:
        """The same in a sentence."""
        return (
            f"Turn {self.number}: {self.prompt:,} tokens, {self.evaluated:,} read anew, "
            f"first token after {self.first}"
        )


@dataclass(frozen=True, slots=True)
class TurnPlot:
    """The turns, oldest first, and what the axes end at."""

    points: Sequence[TurnPoint]
    most_tokens: int
    most_time: str
    bar: float
    """Width of a bar."""

    @property
    def prompts(self) -> str:
        """The line of the prompts' lengths, as SVG takes it."""
        return " ".join(f"{point.x},{point.prompt_y}" for point in self.points)

    @property
    def firsts(self) -> str:
        """The line of the times to the first token."""
        return " ".join(f"{point.x},{point.first_y}" for point in self.points)


def plot_of(path: Sequence[StoredMessage]) -> TurnPlot | None:
    """The plot of a branch; None where there are not two measured answers yet."""
    answers = [row for row in path if row.role == "assistant"]
    measured = [
        (number, row.usage, row.timings)
        for number, row in enumerate(answers, 1)
        if row.usage is not None and row.timings is not None and row.usage.prompt_tokens
    ][-_SHOWN:]
    if len(measured) < 2:
        return None
    most_tokens = _ceiling(max(usage.prompt_tokens for _, usage, _ in measured))
    most_time = _ceiling(max(timings.first_token_ms for _, _, timings in measured))
    step = (WIDTH - LEFT) / len(measured)
    points = [
        TurnPoint(
            number=number,
            prompt=usage.prompt_tokens,
            evaluated=(evaluated := max(0, usage.prompt_tokens - usage.cached_tokens)),
            first_ms=timings.first_token_ms,
            x=round(LEFT + step * (at + 0.5), 2),
            prompt_y=_height(usage.prompt_tokens, most_tokens),
            evaluated_y=_height(evaluated, most_tokens),
            first_y=_height(timings.first_token_ms, most_time),
        )
        for at, (number, usage, timings) in enumerate(measured)
    ]
    return TurnPlot(points, int(most_tokens), seconds(most_time), round(max(1.0, min(14.0, step * 0.6)), 2))


def _height(value: float, most: float) -> float:
    return round(HEIGHT * (1 - value / most), 2)


def _ceiling(value: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** int(log10(value)) if value >= 1 else 1.0
    return next(unit * factor for factor in (1, 2, 3, 4, 5, 6, 8, 10) if unit * factor >= value)
