"""`rallychat bench titles`: a row for each conversation, and nothing of them is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from rallychat.bench.scripted import scripted
from rallychat.bench.titles import run_titles
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.runs import Run
from rallychat.settings import Settings


async def test_each_question_is_named_by_rule_and_by_the_model_and_nothing_is_left(tmp_path: Path) -> None:
    scripted(tmp_path, "bench", 'replies = ["Boats float.", "Boats and Why They Float"]')
    settings = Settings(data_dir=tmp_path, model="bench")
    rows = await run_titles(settings, questions=["Please tell me why boats float."])
    written = "Boats and Why They Float"
    assert rows == [{"rule": "Tell me why boats float.", "written": written, "taken": written}]
    async with ChatService.open(settings) as service:
        assert await service.store.list() == []


async def test_answers_are_drawn_with_a_seed_so_that_the_table_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sampling] = []
    turn = ChatService.turn

    async def watched(self: ChatService, conversation_id: str, text: str, *, sampling: Sampling) -> Run:
        asked.append(sampling)
        return await turn(self, conversation_id, text, sampling=sampling)

    monkeypatch.setattr(ChatService, "turn", watched)
    scripted(tmp_path, "bench", 'replies = ["Boats float."]')
    await run_titles(Settings(data_dir=tmp_path, model="bench"), questions=["Why do boats float?"])
    assert [(one.seed, one.temperature) for one in asked] == [(1, None), (None, 0.0)]


async def test_what_is_no_title_is_shown_and_not_taken(tmp_path: Path) -> None:
    scripted(tmp_path, "bench", 'replies = ["Boats float.", "The answer to this question is:"]')
    rows = await run_titles(Settings(data_dir=tmp_path, model="bench"), questions=["Why do boats float?"])
    assert [(row["written"], row["taken"]) for row in rows] == [("The answer to this question is:", "")]
