"""What the benchmarks of long conversations say: from a file, or real questions that come with us."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.errors import InvalidRequest

LONGEST = 240
"""Characters of a message: about 50 tokens."""
OURS = Path(__file__).with_name("questions.txt")
"""A message a line; lines that begin with # say where they are from."""
SPREAD = (0.5, 1.5)
"""How much less or more than usual a person thinks: else those who are answered together would ask together."""


def thinks(seconds: float) -> Iterator[float]:
    """Seconds between an answer and the next question, about so many; the same ones each time."""
    rng = random.Random(1)  # noqa: S311 - who thinks how long
    while True:
        yield seconds * rng.uniform(*SPREAD)


def questions(path: Path | None) -> Iterator[str]:
    """Messages of a person, without end; none twice.

    Args:
        path: JSON lines with `history` or `messages` (mtbench101 and chat formats); ours if None.

    Raises:
        InvalidRequest: there is nothing to say in the file.
    """
    said = distinct(path)
    yield from said
    for number in itertools.count(2):  # told apart, so that no prompt is that of an earlier round
        yield from (f"({number}) {text}" for text in said)


def distinct(path: Path | None) -> list[str]:
    """The same, each once.

    Raises:
        InvalidRequest: there is nothing to say in the file.
    """
    lines = (path or OURS).read_text(encoding="utf-8").splitlines()
    if path is None:
        said = [line for line in lines if line and not line.startswith("#")]
    else:
        said = list(dict.fromkeys(text[:LONGEST] for line in lines if line for text in _said(line)))
    if not said:
        raise InvalidRequest(f"{path} holds no messages of users.", param="texts")
    return said


def exchanges(path: Path) -> Iterator[tuple[str, str]]:
    """What persons said in the dialogues of a file (mtbench101's `history`), and what was answered, in their order.

    Raises:
        InvalidRequest: the file cannot be read, or holds something else.
    """
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from ((turn["user"], turn["bot"]) for turn in json.loads(line)["history"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InvalidRequest(f"{path} holds no dialogues: {exc}.") from exc


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


def alike(path: Path | None, count: int, tokens: Mapping[str, int], within: range) -> list[str]:
    """The first `count` of those whose `tokens` are `within`; none is said twice.

    Raises:
        InvalidRequest: there are not so many.
    """
    fitting = [text for text in distinct(path) if tokens[text] in within]
    if len(fitting) < count:
        raise InvalidRequest(
            f"{len(fitting)} messages have {within[0]} to {within[-1]} tokens, and {count} turns were asked for.",
            param="question_tokens",
            hint="take a wider range, fewer turns, or another file",
        )
    return fitting[:count]
