"""`rallychat bench crash`: kills amid answers, looks until the last moment, and says where nothing was left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rallychat.bench.crash import _Seen, run_crash
from rallychat.bench.scripted import scripted
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings


@pytest.mark.timeout(180)
async def test_nothing_that_was_seen_is_lost_when_the_engine_or_the_server_is_killed(tmp_path: Path) -> None:
    scripted(tmp_path, "talker", f'delay_ms = 10\nreplies = ["{"word " * 400}"]')
    rows = await run_crash(Settings(data_dir=tmp_path, model="talker"), streams=3)
    assert [row["killed"] for row in rows] == ["worker", "server"]
    counted = ("user_messages_lost", "answers_lost", "not_marked", "lost_characters")
    assert [[row[name] for name in counted] for row in rows] == [[0] * 4] * 2
    assert all(row["seen_characters"] > 0 for row in rows)


@pytest.mark.timeout(180)
async def test_answers_that_end_before_anything_is_killed_are_no_measurement(tmp_path: Path) -> None:
    scripted(tmp_path, "brief", 'replies = ["Yes."]')
    with pytest.raises(EngineUnavailable, match="All answers had ended"):
        await run_crash(Settings(data_dir=tmp_path, model="brief"), streams=2)


def line(seen: int, *, message: str = "m", ended: bool = False) -> bytes:
    told = {"conversation": f"of {message}", "message": message, "seen": seen, "ended": ended}
    return json.dumps(told).encode() + b"\n"


def test_what_is_seen_last_counts_but_for_a_line_that_was_cut_off() -> None:
    seen = _Seen()
    for each in (line(3), line(9, message="n"), line(7), line(8)[:-4]):
        seen.of(each)
    assert (seen.characters, seen.conversations, seen.ended) == ({"m": 7, "n": 9}, ["of m", "of n"], set())


def test_the_kill_waits_for_all_to_say_something_but_not_for_more_than_there_is() -> None:
    seen = _Seen()
    seen.of(line(10_000))
    assert not seen.enough(2)
    seen.of(line(0, message="n"))
    assert not seen.enough(2)
    seen.of(line(1, message="n", ended=True))
    assert seen.enough(2)
