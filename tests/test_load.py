"""`rallychat bench load`: who comes and thinks as the trace says, and what the table makes of what they saw."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from rallychat.bench import load
from rallychat.bench.load import Said, Told
from rallychat.bench.people import LEAST, MOST, Person, Turn, made_up, rounds, traced
from rallychat.errors import InvalidRequest
from tests.api_world import settings


def trace(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_request_that_begins_with_another_goes_on_with_its_conversation(tmp_path: Path) -> None:
    first = {"timestamp": 0, "output_length": 80, "hash_ids": [0, 1, 2]}
    other = {"timestamp": 3000, "output_length": 8, "hash_ids": [0, 7, 8]}
    second = {"timestamp": 30000, "output_length": 400, "hash_ids": [0, 1, 3, 4]}
    habits = traced(trace(tmp_path / "t", first, other, second))
    assert habits.arrivals == (0, 3)
    assert habits.thinks == (30,)
    assert habits.outputs == (80, 8, 400)


@pytest.mark.parametrize(
    "text", ["", "no JSON", '{"timestamp": 1}', "[]", '{"timestamp":1,"output_length":1,"hash_ids":[1]}']
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(InvalidRequest):
        traced(tmp_path / "t")


def test_the_same_seed_makes_the_same_people_and_nobody_repeats_anybody() -> None:
    def plan() -> list[list[Person]]:
        return list(islice(rounds(made_up(3), None, users=4, turns=3, speed=30, seed=5), 3))

    people = [person for each in plan() for person in each]
    said = [turn.text for person in people for turn in person.turns]
    assert plan() == plan()
    assert len(set(said)) == len(said) == 36
    assert all(LEAST <= turn.max_tokens <= MOST for person in people for turn in person.turns)
    assert all(person.turns[0].think == 0 < person.turns[1].think for person in people)


def test_a_row_counts_failures_apart_and_cached_tokens_of_all() -> None:
    failed = [Said(failure="503"), Said(failure=load.UNENDED)]
    told = Told([Said(100, 10, 40, 0), Said(300, 30, 60, 50), *failed], seconds=4, rounds=1)
    assert load._row("x", told) == {
        "arm": "x", "rounds": 1, "turns": 2, "failures": 1, "unended": 1, "first_ms": 200, "first_p95_ms": 300,
        "tokens_per_s": 10.0, "cached_share": 0.5,
    }  # fmt: skip


class Slow:
    """Answers one turn, then hangs; notes whether it stands still."""

    name = "slow"

    def __init__(self) -> None:
        self.paused: list[bool] = []

    async def talk(self, person: Person, number: int, tell: Callable[[Said], None]) -> None:
        tell(Said(5, 1, 1, 0))
        await asyncio.Event().wait()

    def pause(self, *, paused: bool) -> None:
        self.paused.append(paused)


async def test_a_round_that_takes_too_long_is_cut_off_with_what_there_is(tmp_path: Path) -> None:
    arm, told, out = Slow(), Told(), tmp_path / "out.jsonl"
    people = [Person(0, ()), Person(0, ()), Person(9999, ())]
    await load._measured(arm, people, told, 0.05, asyncio.Event(), out)
    assert (len(told.said), told.rounds, arm.paused) == (2, 1, [False, True])
    assert len(out.read_text().splitlines()) == 2


async def test_a_turn_under_way_when_its_round_is_cut_off_is_counted() -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    told, here = Told(), cast("asyncio.subprocess.Process", Still())
    people = [Person(0, (Turn("Hi", think, 8),)) for think in (0, 9999)]
    async with httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(silent)) as http:
        arm = load.Direct("raw", here, http, slots=None, penalty=1.0)
        await load._measured(arm, people, told, 0.05, asyncio.Event(), None)
    row = load._row("raw", told)
    assert (row["turns"], row["failures"], row["unended"]) == (0, 0, 1)


class Still:
    """A process that is stopped and goes on."""

    def send_signal(self, _: int) -> None:
        """Nobody is there."""


async def test_a_round_that_not_all_arms_have_had_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quick(Slow):
        def __init__(self, name: str, ends_it: int = 0) -> None:
            super().__init__()
            self.name, self._ends_it = name, ends_it

        async def talk(self, person: Person, number: int, tell: Callable[[Said], None]) -> None:
            tell(Said(5, 1, 1, 0))
            if len(self.paused) == 2 * self._ends_it - 1:  # its own so many-th round
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()

    async def arms(*_: object) -> list[Slow]:
        return [Quick("one"), Quick("two", ends_it=2)]

    monkeypatch.setattr(load, "_arms", arms)
    told: list[str] = []
    rows = await load.run_load(
        settings(tmp_path), minutes=9, users=1, turns=1, speed=1, seed=1, trace=None, texts=None, image=None,
        out=None, tell=told.append,
    )  # fmt: skip
    assert [(row["rounds"], row["turns"]) for row in rows] == [(1, 1), (1, 1)]
    assert told[-1] == "stopped in round 2, which does not count"


@pytest.mark.real
async def test_all_ways_take_what_they_are_sent_and_answer(tmp_path: Path, smollm2_gguf: Path) -> None:
    own = settings(tmp_path, model=str(smollm2_gguf), slots=2, threads=1)
    own.models_dir.mkdir(exist_ok=True)
    rows = await load.run_load(
        own, minutes=0.01, users=2, turns=2, speed=10_000, seed=1, trace=None, texts=None, image=None, out=None
    )  # fmt: skip
    assert [(row["rounds"], row["turns"], row["failures"]) for row in rows] == [(1, 4, 0)] * 3
