"""What the benchmarks of long conversations say: from a file, or varied text of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.errors import InvalidRequest

LONGEST = 240
"""Characters of a message: about 50 tokens."""
_PEOPLE = ("Ada", "Boris", "Chiyo", "Dilek", "Emil", "Farah", "Goran", "Hana", "Imre")
_PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Dakar", "Perth", "Galway")
_THINGS = ("a kite", "an old radio", "a map of the coast", "a jar of honey", "two tickets", "a red bicycle")
_ASKS = (
    "{p} came back from {q} with {t} and wants to give it to me; what should I say, and what could I give back?",
    "How would you explain to {p}, who is nine and lives in {q}, why the moon changes its shape over the month?",
    "I have to write to {p} in {q} about {t} that never arrived. Which three points should the letter make?",
    "Is it better to travel to {q} in spring or in autumn, if {p} carries {t} and neither of us likes crowds?",
    "{p} says that {t} brings luck in {q}. Where could such a belief come from, and what is a polite answer?",
)


def questions(path: Path | None) -> Iterator[str]:
    """Messages of a person, without end.

    Args:
        path: JSON lines with `history` or `messages` (mtbench101 and chat formats); ours if None.

    Raises:
        InvalidRequest: there is nothing to say in the file.
    """
    if path is None:
        number = 0
        while True:
            yield _own(number)
            number += 1
    said = [text for line in path.read_text(encoding="utf-8").splitlines() if line for text in _said(line)]
    if not said:
        raise InvalidRequest(f"{path} holds no messages of users.", param="texts")
    number = 0
    while True:  # numbered, so that no prompt is that of an earlier round
        yield f"{number}. {said[number % len(said)][:LONGEST]}"
        number += 1


def _own(number: int) -> str:
    parts = {
        "p": _PEOPLE[number % len(_PEOPLE)],
        "q": _PLACES[number % len(_PLACES)],
        "t": _THINGS[number % len(_THINGS)],
    }
    return f"Question {number + 1}: " + _ASKS[number % len(_ASKS)].format(**parts)


def _said(line: str) -> list[str]:
    row: dict[str, Any] = json.loads(line)
    turns = row.get("history") or row.get("messages") or []
    found = [
        turn.get("user") or (turn.get("content") if turn.get("role") == "user" else "") for turn in turns
    ]
    return [" ".join(text.split()) for text in found if text]


def some(path: Path | None, count: int) -> list[str]:
    """The first `count` of them."""
    return list(islice(questions(path), count))
