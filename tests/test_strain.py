"""How many more answers slow nobody: tried one by one, and forgotten after a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.pool.strain import ENOUGH, FRESH, HARM, Strain


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(strain: Strain, answers: int, seconds: float) -> None:
    for _ in range(ENOUGH):
        strain.said(answers, seconds)


def test_nothing_goes_on_beside_people_before_they_were_heard_alone() -> None:
    strain = Strain()
    assert strain.room(2, 8) == 0
    measured(strain, 2, 0.01)
    assert strain.room(2, 8) == 1


def test_one_more_is_tried_as_long_as_it_slows_nobody_and_never_more_than_there_is_room_for() -> None:
    strain = Strain()
    measured(strain, 2, 0.01)
    for more in range(1, 4):
        assert strain.room(2, 4) == more
        measured(strain, 2 + more, 0.01)
    assert (strain.room(2, 4), strain.room(2, 3), strain.room(2, 0)) == (4, 3, 0)


def test_where_one_person_slows_another_a_batch_is_not_even_tried() -> None:
    strain = Strain()
    measured(strain, 3, 0.010)
    measured(strain, 4, 0.012)
    assert (strain.room(3, 8), strain.room(4, 8)) == (0, 0)
    measured(strain, 7, 0.010)
    assert strain.room(7, 8) == 1


def test_what_slows_people_is_not_tried_again_for_a_while() -> None:
    clock = Clock()
    strain = Strain(clock)
    measured(strain, 4, 0.01)
    measured(strain, 5, 0.012)
    assert strain.room(4, 4) == 0
    clock.now = FRESH - 1
    measured(strain, 4, 0.01)
    assert strain.room(4, 4) == 0
    clock.now = FRESH + 1
    assert strain.room(4, 4) == 1


def test_people_who_were_not_heard_alone_for_long_are_heard_again_first() -> None:
    clock = Clock()
    strain = Strain(clock)
    measured(strain, 1, 0.01)
    clock.now = FRESH + 1
    measured(strain, 2, 0.01)
    assert strain.room(1, 4) == 0


@given(st.floats(0.001, 0.1), st.floats(1.0, 1.5), st.integers(1, 8))
def test_in_the_end_as_many_go_on_as_slow_nobody(alone: float, step: float, most: int) -> None:
    strain = Strain()
    measured(strain, 1, alone)
    for _ in range(most + 1):
        room = strain.room(1, most)
        measured(strain, 1 + room, alone * step**room)
    fit = [more for more in range(1, most + 1) if step**more <= HARM * (1 - 1e-9)]
    assert strain.room(1, most) in (
        len(fit),
        len([n for n in range(1, most + 1) if step**n <= HARM * (1 + 1e-9)]),
    )


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_single_late_tokens_say_nothing(noise: float) -> None:
    strain = Strain()
    measured(strain, 1, 0.01)
    for number in range(400):
        strain.said(2, 0.0102 * (1 + noise * (1 if number % 2 else -1)))
    assert strain.room(1, 1) == 1
