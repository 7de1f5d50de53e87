"""What a prompt tells of itself: what is in it, what was left out, and where and why it left the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rallychat.context import log as token_log
from rallychat.context.retrieval import Quote
from rallychat.context.types import Budget, Selection, Strategy, Turn
from rallychat.engines.slots import shared_prefix
from rallychat.messages import ContextReport, Segment
from rallychat.store import StoredMessage


@dataclass(frozen=True, slots=True)
class Sized:
    """What a strategy selected, with the ids of each part."""

    selection: Selection
    entries: list[token_log.Entry]
    quotes: Sequence[Quote] = ()

    @property
    def total(self) -> int:
        """Tokens of all parts."""
        return sum(len(entry.ids or ()) for entry in self.entries)


def report_of(
    path: Sequence[StoredMessage],
    turns: Sequence[Turn],
    sized: Sized,
    strategy: Strategy,
    budget: Budget,
    previous: list[int],
    ids: list[int],
) -> ContextReport:
    """The report of a prompt.

    Args:
        path: the whole branch it was made of.
        turns: its messages as strategies see them.
        previous: the ids of the conversation's prompt before; `ids`: of this one.
    """
    selection = sized.selection
    shared = shared_prefix(previous, ids)
    diverged = shared if previous and shared < len(previous) else None
    memory = selection.memory
    left = (*selection.compacted, *selection.dropped)
    said = zip(turns, path, strict=True) if left else ()
    counted = {turn.id: turn.tokens for turn, row in said if row.span is not None}
    return ContextReport(
        strategy=strategy.name,
        window=budget.window,
        budget=budget.limit,
        prompt_tokens=sized.total,
        segments=tuple(_segments(sized)),
        kept=selection.kept,
        dropped=selection.dropped,
        divergence=_divergence(path, sized, diverged),
        diverged_at=diverged,
        compacted=selection.compacted,
        left_tokens=tuple(counted.get(name, 0) for name in left),
        excluded=selection.excluded,
        pinned=tuple(row.id for row in path if row.mark == "pin"),
        retrieved=tuple(dict.fromkeys(quote.id for quote in sized.quotes if quote.of is None)),
        elsewhere=tuple(dict.fromkeys(quote.id for quote in sized.quotes if quote.of is not None)),
        why=selection.why or (memory.why if memory else ""),
        high_mark=budget.mark,
        budget_why=budget.why,
        memory=memory.version if memory else 0,
    )


def _segments(sized: Sized) -> Iterator[Segment]:
    """The prompt in order; quotes stand before the message they are part of, by their estimated lengths."""
    for entry in sized.entries:
        tokens = len(entry.ids or ())
        if entry is sized.entries[-1]:
            for quote in sized.quotes:
                share = min(quote.tokens, tokens - 1)
                tokens -= share
                kind: Literal["retrieved", "elsewhere"] = "retrieved" if quote.of is None else "elsewhere"
                yield Segment(kind, quote.id, share, round(quote.score, 4), quote.by)
        yield Segment(entry.kind, entry.message_id, tokens)


def _divergence(path: Sequence[StoredMessage], sized: Sized, diverged: int | None) -> str:
    """Why the prompt does not continue the one before, if it does not."""
    selection = sized.selection
    if selection.fresh:
        return selection.why
    if diverged is None:
        return ""
    at = 0
    for entry in sized.entries:
        at += len(entry.ids or ())
        if at > diverged:
            break
    if entry.kind == "memory":
        return "older turns became memory"
    if entry.kind == "system":
        return "the system prompt or the model changed"
    place = f"at message {entry.message_id}" if entry.message_id else "in the middle"
    return f"what was said before changed {place}: an edit, another branch, a pin, or something left out"
