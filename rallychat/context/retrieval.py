"""Older turns that fit the question, quoted beside it. Pure: the search itself is asked elsewhere.

Quotes stand in the new user's message only, dated, and stay there as that message's tokens: nothing in front of
them changes, so they cost their own length once and nothing of the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rallychat.context.selection import tokens_of_text
from rallychat.context.types import Turn
from rallychat.store import search

HEADER = "[From earlier in this conversation:"
USER_FIRST = 2.0
"""How much more a user's message counts than an answer with the same words; the other way round where the question
is after what the model said."""
NEIGHBOUR = 0.35
"""What an answer gets of the score of the message it answers."""
SAME_DAY = 3.0
"""How much more a message counts that was said on a day the question names."""
WORTH = 0.12
"""Share of the best score below which nothing is quoted."""
ALIKE = 0.5
"""Share of its words that a message of no personal kind must share with an older one for that to be quoted."""
NEAR = 40
"""How many of the best are looked at for that."""
_ASKS = re.compile(
    r"\?|？|^\W*(?:what|which|who|whom|whose|when|where|why|how|do|does|did|is|are|was|were|have|has|can|could|remind)\b",
    re.IGNORECASE,
)
_PERSONAL = re.compile(
    r"\b(?:I|I'm|I've|my|mine|me|we|our|us|remember|recall|earlier|before|previously|again|last time|mentioned|told)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?<=[\w,;] )[A-Z]\w+|\d")
_MODEL_SAID = re.compile(
    r"\byou (?:\w+ ){0,2}?(?:recommend|suggest|tell|told|sa(?:y|id)|mention|g[ai]ve|list|wr[io]te|explain|describe|"
    r"provide|propose|advise|share|answer|come up)|\byour (?:\w+ )?(?:list|recommendation|suggestion|answer|advice)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Quote:
    """An older message that is quoted: its line, and how well it fits."""

    id: str
    line: str
    score: float
    tokens: int


def wanted(question: str) -> bool:
    """A message that asks for something personal, or of a name or a day: it may be about what was said earlier."""
    asks = _ASKS.search(question) is not None
    about = _PERSONAL.search(question) or _NAMED.search(question) or search.DATE.search(question)
    return asks and about is not None


def scores(turns: Sequence[Turn], hits: Mapping[str, float], question: str) -> dict[str, float]:
    """How well each turn fits the question: its own words, its day, and a share of what it answers.

    Where the question is not of the kind that looks back, only near repetitions of it score.
    """
    user, model = (1.0, USER_FIRST) if _MODEL_SAID.search(question) else (USER_FIRST, 1.0)
    days = days_in(question)
    by_day = max(hits.values(), default=1.0) / 2 if days else 0.0
    own: dict[str, float] = {}
    for turn in turns:
        score = hits.get(turn.id, 0.0) * (user if turn.role == "user" else model)
        if turn.date and (turn.date.month, turn.date.day) in days:
            score = score * SAME_DAY + (by_day if turn.role == "user" else 0.0)
        own[turn.id] = score
    found: dict[str, float] = {}
    for before, turn in zip((None, *turns), turns, strict=False):
        paired = before is not None and before.role == "user" and turn.role == "assistant"
        found[turn.id] = own[turn.id] + (NEIGHBOUR * own[before.id] if paired and before else 0.0)
    looks_back = wanted(question)
    asked = set(_stems(question))
    if looks_back:
        return {message: score for message, score in found.items() if score > 0}
    near = {turn.id: turn for turn in turns if turn.id in hits}
    best = sorted(near, key=lambda message: -found[message])[:NEAR]
    return {message: found[message] for message in best if _alike(asked, near[message].text) >= ALIKE}


def days_in(text: str) -> set[tuple[int, int]]:
    """The days a text names, as (month, day)."""
    found = set()
    for match in search.DATE.finditer(text):
        named = match["name"] or match["name2"]
        month = _MONTHS.index(named[:3].lower()) + 1 if named else int(match["m"])
        found.add((month, int(match["d"] or match["day"] or match["day2"])))
    return found


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _stems(text: str) -> list[str]:
    return [word[:5] for word in search.words(text)]


def _alike(asked: set[str], text: str) -> float:
    return (
        len(asked & {word.lower()[:5] for word in _WORD.findall(text)}) / len(asked)
        if len(asked) > 1
        else 0.0
    )


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
