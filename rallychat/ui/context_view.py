"""The context inspector: what the model saw, what of it was reused, what was left out and why, what is remembered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rallychat.cards import InspectedEntry, Inspection
from rallychat.messages import ContextReport
from rallychat.store import Memory, StoredMessage
from rallychat.ui.plot import TurnPlot, plot_of
from rallychat.ui.prompt_bar import PromptBar, bar_of
from rallychat.ui.views import seconds

_CONTROL: Final = re.compile(
    r"<\|[^|<>\n]{1,48}\|>|<｜[^｜<>\n]{1,48}｜>|</?s>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>|\[/?INST\]"
)
_ABOUT: Final = {
    "full": "everything, until the window is full",
    "last_n": "the last exchanges only",
    "summary": "a summary, and the newest turns",
    "ledger": "your own words, and the newest turns",
    "facts": "dated facts, and the newest turns",
    "hybrid": "what suits the model, and quotes of older turns",
}
_KINDS: Final = {
    "cut": "Older turns left the prompt",
    "ledger": "Ledger: your words, and the first sentence of each answer",
    "facts": "Facts",
    "summary": "Summary",
}
_VERSIONS: Final = 12
"""Earlier versions of a memory that are shown."""
_FOUND_BY: Final = {"": "", "words": "by words", "meaning": "by meaning", "both": "by words and meaning"}
_BY: Final = {"rules": "made by rules", "model": "written by the model", "user": "edited by you"}


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
class MessageLine:
    """One message in a list. `score` says how well a quoted one fits the question."""

    id: str
    role: str
    text: str
    mark: Literal["pin", "exclude"] | None
    score: float | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Fate:
    """Messages that share what happened to them."""

    kind: str
    title: str
    lines: Sequence[MessageLine]


@dataclass(frozen=True, slots=True)
class MemoryVersion:
    """One version of the memory. `text` is what stands in the prompt, empty where older turns just left."""

    version: int
    title: str
    by: str
    why: str
    text: str
    covers: int
    active: bool
    in_force: bool


@dataclass(frozen=True, slots=True)
class StrategyOption:
    """One strategy a person can choose."""

    name: str
    about: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the context is kept from now on. `usual` is the strategy where none is chosen."""

    strategies: Sequence[StrategyOption]
    usual: str
    budget: int | None
    elsewhere: bool | None
    usually_elsewhere: bool
    memories: Sequence[MemoryVersion]

    @property
    def memory(self) -> MemoryVersion | None:
        """The one in force."""
        return next((each for each in self.memories if each.in_force), None)

    @property
    def undone(self) -> Sequence[MemoryVersion]:
        """The other versions, newest first, as many as are shown."""
        return [each for each in reversed(self.memories) if not each.in_force][:_VERSIONS]


@dataclass(frozen=True, slots=True)
class ContextView:
    """Everything the inspector shows."""

    conversation: str
    model_name: str
    report: ContextReport | None
    numbers: Sequence[tuple[str, str]]
    bar: PromptBar | None
    strategy: str
    why: str
    divergence: str
    kept: Sequence[MessageLine]
    fates: Sequence[Fate]
    plot: TurnPlot | None
    keeping: Keeping
    entries: Sequence[EntryView]


def view_of(
    conversation_id: str,
    inspection: Inspection,
    path: Sequence[StoredMessage],
    keeping: Keeping,
    others: Sequence[StoredMessage] = (),
) -> ContextView:
    """What the inspector shows for the newest answer of a branch; `others` are quoted of other conversations."""
    said = {row.id: row.text for row in path}
    report = inspection.report
    reused = inspection.usage.cached_tokens if inspection.usage else report.reused_tokens if report else 0
    return ContextView(
        conversation=conversation_id,
        model_name=inspection.model.name,
        report=report,
        numbers=_numbers(inspection, reused),
        bar=bar_of(report, reused) if report and report.window else None,
        strategy=report.strategy if report else "",
        why=report.why if report else "",
        divergence=_named(report.divergence, path) if report else "",
        kept=[_line(row, None, "") for row in path if report and row.id in report.kept],
        fates=_fates(report, path, others),
        plot=plot_of(path),
        keeping=keeping,
        entries=[_entry(entry, said) for entry in inspection.entries],
    )


def keeping_of(
    names: Sequence[str],
    *,
    chosen: str | None,
    usual: str,
    budget: int | None,
    elsewhere: bool | None,
    usually_elsewhere: bool,
    memories: Sequence[Memory],
    in_force: Memory | None,
) -> Keeping:
    """How a conversation's context is kept, as a person can change it."""
    return Keeping(
        [StrategyOption(name, _ABOUT.get(name, ""), name == chosen) for name in names],
        usual,
        budget,
        elsewhere,
        usually_elsewhere,
        [_version(memory, in_force) for memory in memories],
    )


def _version(memory: Memory, in_force: Memory | None) -> MemoryVersion:
    return MemoryVersion(
        version=memory.version,
        title=_KINDS[memory.kind],
        by=_BY[memory.edited_by],
        why=memory.why,
        text=memory.text,
        covers=sum(id_ <= memory.until for id_ in memory.covers),  # a model writes of newer ones, too
        active=memory.active,
        in_force=in_force is not None and memory.version == in_force.version,
    )


def _numbers(inspection: Inspection, reused: int) -> list[tuple[str, str]]:
    numbers: list[tuple[str, str]] = []
    report = inspection.report
    if report:
        numbers.append(("Prompt", f"{report.prompt_tokens:,} tokens"))
        numbers.append(("Reused", f"{reused:,} tokens"))
        numbers.append(("Read anew", f"{max(0, report.prompt_tokens - reused):,} tokens"))
    if inspection.usage:
        numbers.append(("Answer", f"{inspection.usage.completion_tokens:,} tokens"))
    if inspection.timings:
        numbers.append(("First token", f"after {seconds(inspection.timings.first_token_ms)}"))
        numbers.append(("Whole answer", f"in {seconds(inspection.timings.total_ms)}"))
    if report and report.background_ms:
        numbers.append(("In idle time", seconds(report.background_ms)))
    return numbers


def _fates(
    report: ContextReport | None, path: Sequence[StoredMessage], others: Sequence[StoredMessage]
) -> list[Fate]:
    """What happened to the messages that do not stand word by word in the prompt, and those a person marked."""
    if report is None:
        return []
    rows = {row.id: row for row in (*path, *others)}
    found = {
        each.message_id: (each.score, _FOUND_BY[each.by])
        for each in report.segments
        if each.kind in ("retrieved", "elsewhere")
    }
    pinned = [row.id for row in path if row.mark == "pin"]
    excluded = dict.fromkeys([*report.excluded, *(row.id for row in path if row.mark == "exclude")])
    groups = (
        ("retrieved", "quoted beside your question, as they fit it", report.retrieved),
        ("elsewhere", "of other conversations quoted beside your question", report.elsewhere),
        ("compacted", "became memory", report.compacted),
        ("dropped", "left out to make room", report.dropped),
        ("excluded", "left out by you", tuple(excluded)),
        ("pinned", "pinned by you", tuple(pinned)),
    )
    return [
        Fate(kind, title, [_line(rows[each], *found.get(each, (None, ""))) for each in ids if each in rows])
        for kind, title, ids in groups
        if any(each in rows for each in ids)
    ]


def _line(row: StoredMessage, score: float | None, by: str) -> MessageLine:
    who = "You" if row.role == "user" else "Answer"
    return MessageLine(row.id, who, shortened(row.text), row.mark, score, by)


def _named(divergence: str, path: Sequence[StoredMessage]) -> str:
    """The reason, with a message's words in place of its id."""
    for row in path:
        if row.id in divergence:
            return divergence.replace(f"message {row.id}", f"“{shortened(row.text, 40)}”")
    return divergence


def _entry(entry: InspectedEntry, said: Mapping[str, str]) -> EntryView:
    """Control tokens are looked for around what was said only: one that a person typed is plain text."""
    content = said.get(entry.message_id or "", "").strip()
    at = entry.text.find(content) if content else -1
    if at < 0:
        return EntryView(entry.role, list(stretches(entry.text)), entry.ids or ())
    end = at + len(content)
    around = [*stretches(entry.text[:at]), Stretch(content, control=False), *stretches(entry.text[end:])]
    return EntryView(entry.role, around, entry.ids or ())


def stretches(text: str) -> list[Stretch]:
    """A prompt's text, cut where control tokens stand."""
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


def shortened(text: str, most: int = 90) -> str:
    """One line of a text."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most].rstrip() + "…"
