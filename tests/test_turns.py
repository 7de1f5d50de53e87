"""Turns are what they would be if nothing were remembered of a branch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rallychat import turns
from rallychat.context.strategies import strategy_named
from rallychat.messages import Text
from rallychat.store import TokenSpan
from rallychat.turns import Turns, turns_of
from tests.context_world import Talk


async def test_a_message_that_has_not_changed_is_the_same_turn_and_one_that_has_is_another() -> None:
    talk = Talk(strategy_named("hybrid"))
    for number in range(4):
        await talk.turn(f"question {number}", f"answer {number}")
    remembered, path = Turns(), talk.path
    before = remembered.of("c", path, "base")
    assert before == turns_of(path, "base")
    changes = [
        replace(path[2], mark="pin"),
        replace(path[2], parts=(Text("another question"),)),
        replace(path[2], span=TokenSpan("base:k", (1, 2), "quoted")),
    ]
    for changed in changes:
        other = [*path[:2], changed, *path[3:]]
        after = remembered.of("c", other, "base")
        assert after == turns_of(other, "base") != before
        assert all(one is same for at, (one, same) in enumerate(zip(after, before, strict=True)) if at != 2)
        assert remembered.of("c", other, "other base") == turns_of(other, "other base")
        before = remembered.of("c", path, "base")


async def test_what_is_remembered_of_branches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST", 5)
    talk = Talk(strategy_named("hybrid"))
    await talk.turn("question", "answer")
    remembered = Turns()
    for chat in "abcd":
        assert remembered.of(chat, talk.path, "") == turns_of(talk.path)
    assert [*remembered._known] == ["c", "d"]
