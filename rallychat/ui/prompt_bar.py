"""The prompt as a bar: its segments against the budget, and what of it was reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rallychat.messages import ContextReport, Segment

NAMES: Final = {
    "system": "System prompt",
    "user": "You",
    "assistant": "Answer",
    "memory": "Memory",
    "retrieved": "Quoted",
    "elsewhere": "Quoted of another conversation",
    "generation": "Turn markers",
}
_DRAWN: Final = 120
"""Segments drawn one by one; older ones are drawn as one."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One segment; `start` and `share` are in percent of the whole bar."""

    label: str
    kind: str
    tokens: int
    start: float
    share: float


@dataclass(frozen=True, slots=True)
class PromptBar:
    """The bar as long as the budget, or as the prompt where that is longer. Marks are in percent of it."""

    bars: Sequence[Bar]
    kinds: Sequence[str]
    """Those that are in it, for its legend."""
    prompt: int
    budget: int
    window: int
    reused: int
    evaluated: int
    reused_share: float
    prompt_share: float
    high_mark: int
    mark_share: float
    why: str


def bar_of(report: ContextReport, reused: int) -> PromptBar:
    """The bar of one prompt. `reused`: tokens of it that the engine had, as it says itself."""
    prompt = max(report.prompt_tokens, sum(segment.tokens for segment in report.segments))
    whole = max(prompt, report.budget)
    bars = _bars(report.segments, whole)
    there = {bar.kind for bar in bars}
    return PromptBar(
        bars=bars,
        kinds=[kind for kind in NAMES if kind in there and kind != "generation"],
        prompt=report.prompt_tokens,
        budget=report.budget,
        window=report.window,
        reused=reused,
        evaluated=max(0, report.prompt_tokens - reused),
        reused_share=_percent(min(reused, prompt), whole),
        prompt_share=_percent(prompt, whole),
        high_mark=report.high_mark,
        mark_share=_percent(min(report.high_mark, whole), whole),
        why=report.budget_why,
    )


def _bars(segments: Sequence[Segment], whole: int) -> list[Bar]:
    """The segments, left to right; the oldest are joined when there are very many."""
    early = segments[: max(0, len(segments) - _DRAWN)]
    bars: list[Bar] = []
    start = sum(segment.tokens for segment in early)
    if early:
        bars.append(Bar(f"{len(early)} earlier parts", "earlier", start, 0.0, _percent(start, whole)))
    for segment in segments[len(early) :]:
        label = NAMES[segment.kind]
        bars.append(
            Bar(label, segment.kind, segment.tokens, _percent(start, whole), _percent(segment.tokens, whole))
        )
        start += segment.tokens
    return bars


def _percent(tokens: int, whole: int) -> float:
    return round(100 * tokens / whole, 3) if whole else 0.0
