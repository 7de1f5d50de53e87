"""The trim that needs no model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallychat.context.trim import LOW_MARK, answer_reserve, cut


def test_the_oldest_exchanges_leave_until_half_of_the_budget_is_free() -> None:
    roles = ["user", "assistant"] * 4 + ["user"]
    assert cut(roles, [100] * 9, fixed=50, budget=800) == 6


def test_the_last_message_always_stays() -> None:
    assert cut(["user", "assistant", "user"], [10, 10, 5000], fixed=0, budget=100) == 2


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.integers(0, 500), st.integers(1, 4000))
def test_a_cut_is_in_front_of_a_user_and_as_early_as_the_low_mark_allows(
    tokens: list[int], fixed: int, budget: int
) -> None:
    roles = ["user" if i % 2 == 0 else "assistant" for i in range(len(tokens))]
    at = cut(roles, tokens, fixed=fixed, budget=budget)
    assert roles[at] == "user"
    last = max(i for i, role in enumerate(roles) if role == "user")
    if at != last:
        assert fixed + sum(tokens[at:]) <= budget * LOW_MARK
    if at:
        assert fixed + sum(tokens[at - 2 :]) > budget * LOW_MARK


def test_the_answer_gets_what_was_asked_but_never_more_than_half() -> None:
    assert [answer_reserve(8192, n) for n in (None, 100, 8000)] == [1024, 100, 4096]
