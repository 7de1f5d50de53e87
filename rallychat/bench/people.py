"""Who comes when, thinks how long and asks for how much: from a recorded trace, or made up in its shape from a seed.

The trace is Mooncake's (JSON lines: `timestamp` in ms, `output_length`, `hash_ids` of the prompt's blocks). A request
whose blocks begin with another's goes on with that conversation; the time between the two is a think time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rallychat.bench.talk import questions
from rallychat.errors import InvalidRequest

SHORTER = 8
"""Answers are so many times shorter than in the trace, whose machines were larger."""
LEAST, MOST = 8, 96
"""Tokens of an answer."""
MEDIAN_THINK, MEDIAN_OUTPUT = 126.0, 350.0
"""Of the trace, in seconds and tokens; what is made up has them too."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: seconds of thought before it, and tokens of its answer at most."""

    text: str
    think: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Person:
    """Comes after so many seconds, and says these."""

    arrives: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Habits:
    """What is drawn from: seconds of arrival, seconds of thought, tokens of answers."""

    arrivals: tuple[float, ...]
    thinks: tuple[float, ...]
    outputs: tuple[int, ...]


def traced(path: Path) -> Habits:
    """The habits of a recorded trace.

    Raises:
        InvalidRequest: it is none.
    """
    arrivals, thinks, outputs = list[float](), list[float](), list[int]()
    newest: dict[tuple[int, ...], float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            at, blocks = row["timestamp"] / 1000, tuple(row["hash_ids"])
            before = [newest[blocks[:n]] for n in range(len(blocks), 1, -1) if blocks[:n] in newest][:1]
            if before:
                thinks += [at - before[0]]
            else:
                arrivals.append(at)
            outputs.append(row["output_length"])
            if len(blocks) > 2:
                newest[blocks[:-1]] = at  # the last block is rarely full
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise InvalidRequest(f"{path} is no trace: {type(exc).__name__} {exc}.", param="trace") from exc
    if not arrivals or not thinks:
        raise InvalidRequest(f"{path} holds no conversation of several turns.", param="trace")
    return Habits(tuple(arrivals), tuple(thinks), tuple(outputs))


def made_up(seed: int) -> Habits:
    """Habits with the trace's medians and spread."""
    rng = random.Random(seed)  # noqa: S311 - to be had again
    arrivals = [0.0]
    while len(arrivals) < 2000:
        arrivals.append(arrivals[-1] + rng.expovariate(2.3))
    thinks = [MEDIAN_THINK * rng.lognormvariate(0, 1) for _ in range(2000)]
    return Habits(
        tuple(arrivals),
        tuple(thinks),
        tuple(int(MEDIAN_OUTPUT * rng.lognormvariate(0, 0.8)) for _ in range(2000)),
    )


def rounds(
    habits: Habits, texts: Path | None, *, users: int, turns: int, speed: float, seed: int
) -> Iterator[list[Person]]:
    """Without end: the people of one round, none of whom says what another has said."""
    rng = random.Random(seed)  # noqa: S311 - to be had again
    said = questions(texts)
    while True:
        first = rng.randrange(max(1, len(habits.arrivals) - users))
        came = [at - habits.arrivals[first] for at in habits.arrivals[first : first + users]]
        people = []
        for number in range(users):
            talk = tuple(
                Turn(
                    text,
                    rng.choice(habits.thinks) / speed if turn else 0.0,
                    max(LEAST, min(MOST, rng.choice(habits.outputs) // SHORTER)),
                )
                for turn, text in enumerate(islice(said, turns))
            )
            people.append(Person(came[number % len(came)], talk))
        yield people
