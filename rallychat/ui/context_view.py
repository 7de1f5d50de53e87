"""The context inspector: what the model saw, what of it was reused, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rallychat.cards import InspectedEntry, Inspection
from rallychat.messages import ContextReport, Segment
from rallychat.store import StoredMessage
from rallychat.ui.views import seconds

_CONTROL: Final = re.compile(
    r"<\|[^|<>\n]{1,48}\|>|<｜[^｜<>\n]{1,48}｜>|</?s>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>|\[/?INST\]"
)
_SEGMENT_NAMES: Final = {
    "system": "System prompt",
    "user": "You",
    "assistant": "Answer",
    "memory": "Memory",
    "retrieved": "Retrieved",
    "generation": "Turn markers",
}
_DRAWN: Final = 120
"""Segments drawn one by one; older ones are drawn as one."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of the exact text: a control token, or what stands between two."""

    text: str
    control: bool


@dataclass(frozen=True, slots=True)
class EntryView:
    """One message of the prompt."""

    label: str
    stretches: Sequence[Stretch]
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Bar:
    """One segment of the bar; `start` and `share` are in percent of the prompt."""

    label: str
    kind: str
    tokens: int
    start: float
    share: float


@dataclass(frozen=True, slots=True)
class ContextView:
    """Everything the inspector shows."""

    model_name: str
    numbers: Sequence[tuple[str, str]]
    bars: Sequence[Bar]
    reused_share: float
    window_share: float
    reused: int
    evaluated: int
    prompt: int
    window: int
    dropped: Sequence[str]
    divergence: str
    entries: Sequence[EntryView]
    token_count: int


def view_of(inspection: Inspection, path: Sequence[StoredMessage]) -> ContextView:
    """What the inspector shows for the newest answer of a branch."""
    said = {row.id: row.text for row in path}
    report = inspection.report
    reused = inspection.usage.cached_tokens if inspection.usage else report.reused_tokens if report else 0
    prompt = report.prompt_tokens if report else 0
    window = report.window if report else 0
    return ContextView(
        model_name=inspection.model.name,
        numbers=_numbers(inspection, reused),
        bars=_bars(report) if report else (),
        reused_share=_percent(min(reused, prompt), prompt),
        window_share=_percent(prompt, window),
        reused=reused,
        evaluated=max(0, prompt - reused),
        prompt=prompt,
        window=window,
        dropped=[_shortened(said.get(gone, gone)) for gone in report.dropped] if report else (),
        divergence=report.divergence if report else "",
        entries=[_entry(entry, said) for entry in inspection.entries],
        token_count=len(inspection.ids),
    )


def _numbers(inspection: Inspection, reused: int) -> list[tuple[str, str]]:
    numbers: list[tuple[str, str]] = []
    if inspection.report:
        numbers.append(("Prompt", f"{inspection.report.prompt_tokens:,} tokens"))
        numbers.append(("Reused", f"{reused:,} tokens"))
        numbers.append(("Read anew", f"{max(0, inspection.report.prompt_tokens - reused):,} tokens"))
    if inspection.usage:
        numbers.append(("Answer", f"{inspection.usage.completion_tokens:,} tokens"))
    if inspection.timings:
        numbers.append(("First token", f"after {seconds(inspection.timings.first_token_ms)}"))
        numbers.append(("Whole answer", f"in {seconds(inspection.timings.total_ms)}"))
    return numbers


def _bars(report: ContextReport) -> list[Bar]:
    """The prompt's segments, left to right; the oldest are joined when there are very many."""
    segments = list(report.segments)
    total = max(report.prompt_tokens, sum(segment.tokens for segment in segments))
    early = segments[: max(0, len(segments) - _DRAWN)]
    bars: list[Bar] = []
    start = 0
    if early:
        start = sum(segment.tokens for segment in early)
        label = f"{len(early)} earlier parts"
        bars.append(Bar(label, "earlier", start, 0.0, _percent(start, total)))
    for segment in segments[len(early) :]:
        bars.append(_bar(segment, start, total))
        start += segment.tokens
    return bars


def _bar(segment: Segment, start: int, total: int) -> Bar:
    return Bar(
        _SEGMENT_NAMES[segment.kind],
        segment.kind,
        segment.tokens,
        _percent(start, total),
        _percent(segment.tokens, total),
    )


def _percent(tokens: int, total: int) -> float:
    return round(100 * tokens / total, 3) if total else 0.0


def _entry(entry: InspectedEntry, said: Mapping[str, str]) -> EntryView:
    """Control tokens are looked for around what was said only: one that a person typed is plain text."""
    content = said.get(entry.message_id or "", "").strip()
    at = entry.text.find(content) if content else -1
    if at < 0:
        return EntryView(entry.role, list(_stretches(entry.text)), entry.ids or ())
    end = at + len(content)
    around = [*_stretches(entry.text[:at]), Stretch(content, control=False), *_stretches(entry.text[end:])]
    return EntryView(entry.role, around, entry.ids or ())


def _stretches(text: str) -> list[Stretch]:
    out: list[Stretch] = []
    end = 0
    for match in _CONTROL.finditer(text):
        if match.start() > end:
            out.append(Stretch(text[end : match.start()], control=False))
        out.append(Stretch(match.group(), control=True))
        end = match.end()
    if end < len(text):
        out.append(Stretch(text[end:], control=False))
    return out


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:90] + "…"
