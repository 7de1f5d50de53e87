"""How an answer was asked for, written and read."""

from __future__ import annotations

import json

import pytest

from rallychat.wishes import AS_EVER, Habit, Wish


@pytest.mark.parametrize(
    "habit",
    [
        Habit("m", None, None),
        Habit("m", "other", 64, AS_EVER),
        Habit("m", None, 9, Wish("ledger", 900, ("a", "b"), ("c",), elsewhere=False)),
    ],
)
def test_a_habit_is_read_back_from_json_as_it_was(habit: Habit) -> None:
    assert Habit.stored(json.loads(json.dumps(habit.as_json()))) == habit


@pytest.mark.parametrize("written", [{}, {"model": 3}, {"model": "m", "wish": {"pin": "all"}}])
def test_what_another_version_wrote_is_no_habit(written: dict[str, object]) -> None:
    assert Habit.stored(written) is None
