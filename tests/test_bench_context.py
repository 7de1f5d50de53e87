"""`bench context`: deterministic, and its own accounts add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rallychat.bench.context import approximate, run_context
from rallychat.bench.replays import Probe, Replay, Said, made, read, write
from rallychat.errors import InvalidRequest


def test_a_made_conversation_is_the_same_for_the_same_seed_and_is_read_back(tmp_path: Path) -> None:
    [path] = write([made(3, exchanges=40)], tmp_path, stem="x")
    assert read(path) == made(3, exchanges=40) != made(4, exchanges=40)


def test_hybrid_finds_what_sliding_loses_and_reads_only_what_is_new() -> None:
    replays = [made(seed, exchanges=60) for seed in (1, 2)]
    rows = run_context(replays, strategies=["last_n", "hybrid"], budgets=[512])
    assert rows == run_context(replays, strategies=["last_n", "hybrid"], budgets=[512])
    sliding, hybrid = rows
    assert sliding["recall"] < 20
    assert hybrid["recall"] > 75
    assert hybrid["critical"] <= 1.1 < sliding["critical"]


def test_everything_fits_and_is_found() -> None:
    said = Said(id="a", role="user", content="the code is 4711")
    replay = Replay(messages=(said,), probes=(Probe(question="which code?", evidence=("a",)),))
    [row] = run_context([replay], strategies=["full"], budgets=[512], count=approximate)
    assert (row["recall"], row["all_evidence"], row["critical"]) == (100.0, 100.0, 1.0)


ONE = (
    '{"messages": [{"id": "a", "role": "user", "content": "x"}],'
    ' "probes": [{"question": "q", "evidence": ["EVIDENCE"]}]}'
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "messages|JSON"),
        ('{"messages": []}', "messages"),
        (ONE.replace("EVIDENCE", "b"), "'b'"),
    ],
)  # fmt: skip
def test_what_is_no_replay_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InvalidRequest, match=says):
        read(tmp_path / "x.json")


def test_dialogues_are_replayed_as_one_conversation_and_their_quotes_counted(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    said = "My cat {} is called Mara {}. It rained, and we stayed at home all day."
    lines = [{"history": [{"user": said.format(n, n), "bot": "Noted."}]} for n in range(30)]
    lines += [{"history": [{"user": "What is my cat 3 called?", "bot": "Mara 3."}]}]
    file.write_text("\n".join(map(json.dumps, lines)))
    replay = read(file)
    assert [said.role for said in replay.messages[:2]] == ["user", "assistant"]
    assert len(replay.messages) == 62
    (slow,) = run_context([replay], strategies=["hybrid"], budgets=[512], reading=5.0)
    assert slow["quoting"] == round(100 / 31, 1)
    assert 0 < slow["longest"] <= 120


def test_what_holds_no_dialogues_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text('{"said": []}')
    with pytest.raises(InvalidRequest, match="holds no dialogues"):
        read(file)
