"""Older turns that fit the question, quoted beside it. Pure: the search itself is asked elsewhere.

Quotes stand in the new user's message only, dated, and stay there as that message's tokens: nothing in front of
them changes, so they cost their own length once and nothing of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rallychat.context.selection import tokens_of_text
from rallychat.context.types import Turn

HEADER = "[From earlier in this conversation:"
USER_FIRST = 2.0
"""How much more a user's message counts than an answer with the same words."""
NEIGHBOUR = 0.35
"""What a message gets of the score of the one next to it in its exchange."""
WORTH = 0.12
"""Share of the best score below which nothing is quoted."""
RANK = 60
"""The constant of reciprocal rank fusion."""


@dataclass(frozen=True, slots=True)
class Quote:
    """An older message that is quoted: its line, and how well it fits."""

    id: str
    line: str
    score: float
    tokens: int


class Embedder(Protocol):
    """Small static embeddings, as an extra beside words: texts to vectors of one length."""

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector a text."""


def scores(turns: Sequence[Turn], hits: Mapping[str, float]) -> dict[str, float]:
    """How well each turn fits: its own words, and a share of its neighbour's in the exchange."""
    own = {turn.id: hits.get(turn.id, 0.0) * (USER_FIRST if turn.role == "user" else 1.0) for turn in turns}
    found: dict[str, float] = {}
    for before, turn in zip((None, *turns), turns, strict=False):
        paired = before is not None and before.role == "user" and turn.role == "assistant"
        found[turn.id] = own[turn.id] + (NEIGHBOUR * own[before.id] if paired and before else 0.0)
    return {message: score for message, score in found.items() if score > 0}


def fused(*rankings: Sequence[str]) -> dict[str, float]:
    """One score from several rankings (best first), by reciprocal rank."""
    total: dict[str, float] = {}
    for ranking in rankings:
        for rank, message in enumerate(ranking):
            total[message] = total.get(message, 0.0) + 1.0 / (RANK + rank)
    return total


def quotes(turns: Sequence[Turn], scored: Mapping[str, float], *, room: int) -> list[Quote]:
    """The best of `turns` as quotes that fill at most `room` tokens, oldest first.

    Args:
        turns: older turns that are not in the prompt and were not excluded, oldest first.
        scored: how well they fit the question.
    """
    by_id = {turn.id: turn for turn in turns}
    age = {turn.id: index for index, turn in enumerate(turns)}
    best = sorted((m for m in scored if m in by_id), key=lambda m: (scored[m], age[m]), reverse=True)
    if not best:
        return []
    least = scored[best[0]] * WORTH
    left = room - tokens_of_text(HEADER, turns) - 2
    taken: list[Quote] = []
    for message in best:
        if scored[message] < least:
            break
        turn = by_id[message]
        quote = Quote(message, line_of(turn), scored[message], 0)
        size = _size(turn, quote.line)
        if size <= left:
            left -= size
            taken.append(Quote(message, quote.line, scored[message], size))
    return sorted(taken, key=lambda quote: age[quote.id])


def line_of(turn: Turn) -> str:
    """A turn as it is quoted."""
    who = "User" if turn.role == "user" else "You"
    return f"{_stamp(turn.date)}{who}: {turn.text.strip()}"


def block(taken: Sequence[Quote]) -> str:
    """The text that goes in front of the question."""
    return "\n".join([HEADER, *(quote.line for quote in taken)]) + "]\n\n" if taken else ""


def _stamp(date: datetime | None) -> str:
    return f"{date:%Y-%m-%d} " if date else ""


def _size(turn: Turn, line: str) -> int:
    return tokens_of_text(line, [turn]) + 1
