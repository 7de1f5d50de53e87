"""A mapping that forgets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallychat.recent import Recent


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_the_last_that_were_set_are_kept(keys: list[int], most: int) -> None:
    recent: Recent[int, str] = Recent(most)
    for key in keys:
        recent[key] = str(key)
    last = list(dict.fromkeys(reversed(keys)))[:most]
    assert list(reversed(recent.items())) == [(key, str(key)) for key in last]


@given(st.lists(st.tuples(st.integers(0, 9), st.text(max_size=8))), st.integers(1, 20))
def test_what_is_kept_weighs_no_more_than_it_may(entries: list[tuple[int, str]], most: int) -> None:
    recent: Recent[int, str] = Recent(most, size=len)
    for key, value in entries:
        recent[key] = value
        assert sum(map(len, recent.values())) <= most
        assert recent.get(key, value) == value
