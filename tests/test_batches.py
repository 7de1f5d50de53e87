"""The core of batches: order, a bounded window, and a journal that loses and repeats nothing."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.batches import Journal, Line, Outcome, Progress, Stream, read_lines, survey, work
from rallychat.errors import Conflict, EngineUnavailable

FACTS = {"input": "abc", "model": "echo"}
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


async def numbered(count: int) -> AsyncIterator[Line]:
    for number in range(1, count + 1):
        yield Line(number, str(number).encode())


async def said(line: Line) -> Outcome:
    assert line.text is not None
    return Outcome(b'"' + line.text + b'"', ok=line.number % 5 != 0, tokens=line.number)


def outcome(index: int) -> Outcome:
    return Outcome(b'"%d"' % (index + 1), ok=(index + 1) % 5 != 0, tokens=index + 1)


def whole(count: int) -> bytes:
    return b"".join(outcome(index).text + b"\n" for index in range(count))


# --- work ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 100])
async def test_outcomes_come_in_the_order_of_their_lines(width: int) -> None:
    async def backwards(line: Line) -> Outcome:
        for _ in range(20 - line.number % 20):
            await asyncio.sleep(0)
        return await said(line)

    out = io.BytesIO()
    done = await work(numbered(40), backwards, Stream(out), width=width, ahead=8)
    assert out.getvalue() == whole(40)
    assert done == Progress(40, failed=8, tokens=sum(range(41)))


async def test_no_more_lines_run_than_are_wanted_and_none_runs_far_ahead() -> None:
    running: set[int] = set()
    most, furthest = 0, 0

    async def watched(line: Line) -> Outcome:
        nonlocal most, furthest
        running.add(line.number)
        most, furthest = max(most, len(running)), max(furthest, line.number)
        for _ in range(200 if line.number == 1 else 1):
            await asyncio.sleep(0)
        if line.number == 1:
            assert furthest == 11  # the first was unfinished, and the window is ten lines
        running.discard(line.number)
        return await said(line)

    await work(numbered(50), watched, Stream(io.BytesIO()), width=4, ahead=10)
    assert (most, furthest) == (4, 50)


async def test_each_outcome_is_told() -> None:
    told: list[Progress] = []
    await work(numbered(5), said, Stream(io.BytesIO()), width=1, ahead=1, tell=told.append)
    assert [(at.done, at.failed) for at in told] == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]


async def test_what_is_raised_ends_the_batch_and_what_was_done_is_kept(tmp_path: Path) -> None:
    async def until_it_dies(line: Line) -> Outcome:
        if line.number == 7:
            raise EngineUnavailable("gone")
        return await said(line)

    out = tmp_path / "out.jsonl"
    with Journal(out, FACTS) as journal, pytest.raises(EngineUnavailable):
        await work(numbered(20), until_it_dies, journal, width=2, ahead=8)
    asked: list[int] = []

    async def again(line: Line) -> Outcome:
        asked.append(line.number)
        return await said(line)

    with Journal(out, FACTS) as journal:
        done = await work(numbered(20), again, journal, width=2, ahead=8)
        journal.finish()
    assert out.read_bytes() == whole(20)
    assert min(asked) == 7
    assert done.before + len(asked) == done.done == 20
    assert done.failed == 4


async def test_a_batch_that_is_called_off_keeps_what_was_done(tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def stuck(line: Line) -> Outcome:
        if line.number == 4:
            reached.set()
            await asyncio.Event().wait()
        return await said(line)

    with Journal(tmp_path / "out.jsonl", FACTS) as journal:
        running = asyncio.create_task(work(numbered(9), stuck, journal, width=1, ahead=4))
        await reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert journal.written == 3


# --- the journal --------------------------------------------------------------------------------------------


def killed(folder: Path, order: list[int], *, torn: int, limit: int) -> tuple[Path, set[int]]:
    """What a process leaves that is killed after these outcomes came, `torn` bytes before its last write ended."""
    out = folder / "out.jsonl"
    for left in folder.iterdir():
        left.unlink()
    with Journal(out, FACTS, limit=limit) as journal:
        before = journal.path.read_bytes()
        for index in order:
            before = journal.path.read_bytes()
            journal.add(index, outcome(index))
    now = journal.path.read_bytes()
    grown = now.startswith(before) and len(now) > len(before)
    torn = min(torn, len(now) - len(before)) if grown else 0
    journal.path.write_bytes(now[: len(now) - torn])
    if torn:  # then the output was not yet written either
        out.write_bytes(out.read_bytes() + b'{"half a li')
    return out, set(order[:-1] if torn else order)


@unhurried
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, n))),
    st.integers(0, 60),
    st.sampled_from([1, 200, 10_000]),
)
def test_whenever_it_is_killed_no_line_is_lost_or_repeated(
    tmp_path_factory: pytest.TempPathFactory, plan: tuple[list[int], int], torn: int, limit: int
) -> None:
    order, stop = plan
    folder = tmp_path_factory.getbasetemp() / "journal"
    folder.mkdir(exist_ok=True)
    out, kept = killed(folder, list(order[:stop]), torn=torn, limit=limit)
    with Journal(out, FACTS, limit=limit) as journal:
        known = set(range(journal.written)) | set(journal.held)
        assert known == kept
        assert journal.failed == sum(not outcome(index).ok for index in kept)
        for index in order:
            if index not in known:
                journal.add(index, outcome(index))
        journal.finish()
    assert out.read_bytes() == whole(len(order))
    assert [path.name for path in folder.iterdir()] == ["out.jsonl"]


def test_a_long_journal_is_begun_anew(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.jsonl", FACTS, limit=500) as journal:
        for index in range(1000):
            journal.add(index, outcome(index))
        assert journal.path.stat().st_size < 1000


@pytest.mark.parametrize("changed", ["input", "model"])
def test_another_batch_does_not_go_on_where_this_one_stopped(tmp_path: Path, changed: str) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, FACTS) as journal:
        journal.add(0, outcome(0))
    with pytest.raises(Conflict, match=f"begun with another {changed}") as refused:
        Journal(out, FACTS | {changed: "other"})
    assert "--overwrite" in refused.value.hint
    assert out.read_bytes() == whole(1)
    with Journal(out, FACTS | {changed: "other"}, overwrite=True) as journal:
        assert (journal.written, out.read_bytes()) == (0, b"")


def test_an_output_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(Conflict, match="exists already"):
        Journal(out, FACTS)
    assert out.read_text() == "mine\n"


def test_an_output_that_has_lost_lines_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, FACTS, limit=1) as journal:
        journal.add(0, outcome(0))
    out.write_bytes(b"")
    with pytest.raises(Conflict, match="has lost lines"):
        Journal(out, FACTS)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"not json\n"])
def test_a_damaged_journal_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    with Journal(tmp_path / "out.jsonl", FACTS) as journal:
        pass
    journal.path.write_bytes(damage)
    with pytest.raises(Conflict, match="is damaged"):
        Journal(tmp_path / "out.jsonl", FACTS)


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, FACTS), pytest.raises(Conflict, match="Another process"):
        Journal(out, FACTS)
    with Journal(out, FACTS) as journal:
        journal.finish()


def test_what_is_settled_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with Journal(tmp_path / "out.jsonl", FACTS) as journal:
        monkeypatch.setattr(os, "fsync", synced.append)
        journal.add(0, outcome(0))
        assert synced == []
        journal.settle()
        assert len(synced) == 1


# --- lines --------------------------------------------------------------------------------------------------


async def lines_of(content: bytes, longest: int = 100) -> list[Line]:
    return [line async for line in read_lines(io.BytesIO(content), longest=longest)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb", [Line(1, b"a"), Line(2, b"b")]),
        (b"a\r\n\r\n  \nb\n", [Line(1, b"a"), Line(4, b"b")]),
        (b"\xef\xbb\xbfa\n", [Line(1, b"a")]),
        (b"x" * 100 + b"\n" + b"y" * 101 + b"\nz\n", [Line(1, b"x" * 100), Line(2, None), Line(3, b"z")]),
        (b"y" * 3_000_000, [Line(1, None)]),
    ],
)
async def test_lines_are_read_one_at_a_time(content: bytes, lines: list[Line]) -> None:
    assert await lines_of(content) == lines


@unhurried
@given(st.text(alphabet="a \n\r\t", max_size=60).map(str.encode), st.integers(1, 7))
def test_a_survey_counts_the_lines_that_will_be_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "survey.jsonl"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rallychat.batches.lines.CHUNK", chunk)
        found = survey(file)
    assert (found.lines, found.size) == (len(asyncio.run(lines_of(content))), len(content))


async def test_a_pipe_is_waited_for_while_others_work() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        lines = read_lines(stream, longest=100)
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)  # others get their turn
        assert not waiting.done()
        os.write(writing, b"first\nsecond\n")
        assert await waiting == Line(1, b"first")
        os.close(writing)
        assert [line async for line in lines] == [Line(2, b"second")]


def test_copies_of_a_killed_batch_can_be_finished_elsewhere(tmp_path: Path) -> None:
    """The journal names no place."""
    there = tmp_path / "there"
    there.mkdir()
    with Journal(tmp_path / "out.jsonl", FACTS) as journal:
        journal.add(1, outcome(1))
    for name in ("out.jsonl", "out.jsonl.journal"):
        shutil.copy(tmp_path / name, there / name)
    with Journal(there / "out.jsonl", FACTS) as moved:
        moved.add(0, outcome(0))
        moved.finish()
    assert (there / "out.jsonl").read_bytes() == whole(2)
