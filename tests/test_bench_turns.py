"""`bench turns` and `bench neighbours` over the echo engine: their accounts, and runs that end early."""

from __future__ import annotations

import json
import os
import signal
from itertools import islice
from pathlib import Path

import pytest

from rallychat.bench import talk
from rallychat.bench.lengths import lengths
from rallychat.bench.neighbours import THINK, run_neighbours
from rallychat.bench.scripted import scripted
from rallychat.bench.turns import run_turns, share
from rallychat.bench.ways import NAMES
from rallychat.errors import EngineUnavailable, InvalidRequest
from rallychat.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    scripted(tmp_path, "scripted", window=1024)
    return Settings(data_dir=tmp_path, model="scripted", slots=4)


def test_there_is_enough_to_say_for_a_long_conversation_without_saying_it_twice() -> None:
    assert len(set(talk.some(None, 200))) == 200
    assert len(set(islice(talk.questions(None), 600))) == 600


def test_a_file_s_messages_are_said_once_before_any_is_said_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"history": [{"user": "one"}, {"user": "two"}]}\n{"messages": []}\n')
    assert talk.some(path, 4) == ["one", "two", "(2) one", "(2) two"]


def test_questions_of_like_length_are_said_once_and_too_few_are_refused_with_both_numbers() -> None:
    every = talk.distinct(None)
    tokens = {text: len(text) // 4 for text in every}
    said = talk.alike(None, 60, tokens, range(30, 36))
    assert len(set(said)) == 60
    assert {tokens[text] for text in said} <= set(range(30, 36))
    with pytest.raises(InvalidRequest, match=r"\d+ messages have 30 to 35 tokens, and 5000 turns"):
        talk.alike(None, 5000, tokens, range(30, 36))


def test_a_percentile_is_the_value_of_its_own_rank_and_no_later_one() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [share(values, part / 100) for part in range(1, 101)] == sorted(values)
    assert (share([3.0], 0.05), share([1.0, 2.0], 0.95), share([1.0, 2.0], 0.5)) == (3, 2, 1)


async def test_only_questions_of_the_wanted_length_are_said_and_prompts_are_counted(
    settings: Settings, tmp_path: Path
) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "turns.jsonl"
    said = ["one two three four five", "six", "one two three", "seven eight", "three two one"]
    texts.write_text(json.dumps({"history": [{"user": text} for text in said]}))
    engine_counts = await lengths(settings, said)
    assert engine_counts is not None
    wanted = range(engine_counts["one two three"], engine_counts["one two three"] + 1)
    found = await run_turns(
        settings, turns=2, ways=("always turn 2",), texts=texts, question_tokens=wanted, out=out
    )
    turns = [json.loads(line) for line in out.read_text().splitlines()]
    assert [turn["turn"] for turn in turns] == [1, 2]
    assert found.rows[0]["prompt_p95"] == max(turn["prompt"] for turn in turns)
    with pytest.raises(InvalidRequest, match="2 messages"):
        await run_turns(settings, turns=3, texts=texts, question_tokens=wanted)


async def test_all_ways_are_measured_turn_by_turn_and_each_turn_is_written_down(
    settings: Settings, tmp_path: Path
) -> None:
    out, image = tmp_path / "turns.jsonl", tmp_path / "turns.png"
    told: list[str] = []
    found = await run_turns(settings, turns=12, think=(0.0,), out=out, image=image, tell=told.append)
    assert [row["way"] for row in found.rows] == list(NAMES)
    by_way = {row["way"]: row for row in found.rows}
    assert (
        by_way["ours"]["critical"]
        < 1.5
        < by_way["last 3"]["critical"]
        < by_way["everything, uncached"]["critical"]
    )
    assert by_way["last 3 and summary"]["compactions"] == 12 - 4
    assert by_way["always turn 2"]["to_turn_2"] == by_way["always turn 2"]["to_turn_2_p95"] == 1
    assert by_way["ours"]["to_turn_2"] > 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["way"] for line in lines[: len(NAMES)]] == list(NAMES)
    assert [line["turn"] for line in lines] == [turn for turn in range(1, 13) for _ in NAMES]
    assert len(told) == 12
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
async def test_a_run_that_is_interrupted_ends_all_ways_at_the_same_turn(
    settings: Settings, number: signal.Signals
) -> None:
    def tell(line: str) -> None:
        if line.startswith("turn 2"):
            os.kill(os.getpid(), number)

    found = await run_turns(settings, turns=50, think=(0.0,), ways=("last 3", "ours"), tell=tell)
    assert found.turns in (2, 3)
    assert {row["turns"] for row in found.rows} == {found.turns}


async def test_a_run_ends_when_its_time_is_up(settings: Settings) -> None:
    found = await run_turns(settings, turns=50, ways=("last 3",), minutes=1e-6)
    assert (found.turns, [row["turns"] for row in found.rows]) == (1, [1])


async def test_a_way_that_there_is_not_is_refused_by_name(settings: Settings) -> None:
    with pytest.raises(InvalidRequest, match="'theirs'"):
        await run_turns(settings, turns=2, ways=("theirs",))


async def test_neighbours_are_measured_alone_and_beside_compaction(settings: Settings) -> None:
    told: list[str] = []
    rows = await run_neighbours(
        settings.model_copy(update={"slots": 5}), people=2, turns=1, rounds=1, tell=told.append
    )
    assert [row["arm"] for row in rows] == ["alone", "beside compaction"]
    assert rows[0]["background_tokens"] < rows[1]["background_tokens"]
    assert rows[0]["memories"] == 0 < rows[1]["memories"]
    assert rows[0]["think_s"] == rows[1]["think_s"] >= THINK[0]
    assert len(told) == 3


async def test_neighbours_that_are_never_compacted_are_no_measurement(settings: Settings) -> None:
    with pytest.raises(EngineUnavailable, match="is not compacted here"):
        await run_neighbours(settings.model_copy(update={"slots": 5, "strategy": "last_n"}), people=1)
