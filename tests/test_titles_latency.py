"""What counts as a title, and what follows from measured speed."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat import latency
from rallychat.engines.protocol import WorkerSpec
from rallychat.latency import CAREFUL, FELT, NEW, SHORT, Latencies, key_of, limit_of
from rallychat.pool.fairness import Costs
from rallychat.settings import Settings
from rallychat.texts import title_of
from rallychat.titles import checked_title

SAID = "How do I repair the sail of an old boat in the harbour? First you wash the canvas."


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Repairing an Old Sail", "Repairing an Old Sail"),
        ('Title: "Repairing an Old Sail."\n\nI chose it because', "Repairing an Old Sail"),
        ("**Sail repair basics**", "Sail repair basics"),
        ("", ""),
        ("Boat", ""),
        ("Sure, here is a title for the boat", ""),
        ("You wash the canvas, then you dry it, then you sew the sail with strong thread", ""),
        ("The boat the boat the boat", ""),
        ("Quantum physics basics", ""),
        ("What about the boat?", ""),
    ],
)
def test_a_title_is_one_short_line_about_what_was_said(written: str, title: str) -> None:
    assert checked_title(written, said=SAID) == title


@given(st.text(max_size=300))
def test_whatever_a_model_writes_a_title_is_short_and_of_one_line(written: str) -> None:
    title = checked_title(written, said=SAID)
    assert len(title) <= 60
    assert len(title.splitlines()) <= 1


@pytest.mark.parametrize(
    ("asked", "title"),
    [
        ("Who was Marie Curie?", "Who was Marie Curie?"),
        ("hello", "hello"),
        ("Hi there! Can you explain what photosynthesis is?", "Explain what photosynthesis is"),
        ("Can you help me plan a trip to Lisbon with two kids?", "Plan a trip to Lisbon with two kids"),
        (
            "My cat keeps scratching the sofa. What can I do?\nThe sofa is new.",
            "My cat keeps scratching the sofa.",
        ),
        (
            "I need to write an e-mail to my landlord because the heating has been broken for two weeks.",
            "I need to write an e-mail to my landlord because the…",
        ),
        ("天气和气候有什么区别？请用简单的话解释一下。", "天气和气候有什么区别？请用简单的话解释一下。"),
        ("x" * 80, "x" * 59 + "…"),
    ],
)
def test_the_first_question_is_a_title_before_any_model_is_asked(asked: str, title: str) -> None:
    assert title_of(asked) == title


@given(st.text(max_size=300))
def test_whatever_is_asked_its_title_is_short_and_of_one_line(asked: str) -> None:
    title = title_of(asked)
    assert len(title) <= 60
    assert len(title.splitlines()) <= 1
    assert bool(title) is bool(asked.strip())


def test_the_limit_is_where_the_first_token_would_come_too_late() -> None:
    points = [(512, 100.0), (1024, 110.0), (2048, 150.0)]
    assert limit_of(points, 1.2) == 1280
    assert limit_of(points, 1.05) == 768
    assert limit_of(points, 2.0) is None


def test_a_short_context_that_happened_to_be_slow_does_not_raise_the_limit() -> None:
    assert limit_of([(512, 400.0), (768, 200.0), (1024, 300.0)], 1.2) == 870
    assert limit_of([(512, 230.0), (768, 200.0), (1024, 300.0)], 1.2) == 870


def test_an_engine_that_nobody_feels_needs_no_limit() -> None:
    assert limit_of([(512, 5.0), (1024, 50.0)], 1.2) is None


@given(
    st.lists(st.floats(20, 10_000), min_size=2, max_size=6),
    st.floats(1.0, 3.0),
)
def test_a_limit_lies_within_what_was_measured(times: list[float], factor: float) -> None:
    points = [(512 * (n + 1), ms) for n, ms in enumerate(times)]
    limit = limit_of(points, factor)
    assert limit is None or 512 <= limit <= points[-1][0]


def test_another_way_to_run_a_model_is_measured_anew() -> None:
    one = WorkerSpec("llamacpp", "m", slots=2)
    assert key_of(one) == key_of(WorkerSpec("llamacpp", "m", slots=2))
    assert key_of(one) != key_of(WorkerSpec("llamacpp", "m", slots=2, threads=1))


def test_a_damaged_file_of_measurements_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text('{"a": 3}')
    assert Latencies(Settings(data_dir=tmp_path)).pace("m") is None


def test_until_a_machine_is_measured_its_answers_say_whether_reading_is_felt(tmp_path: Path) -> None:
    def engine(milliseconds: float) -> Any:
        costs = Costs()
        costs.read(100, milliseconds / 1000 * 100)
        info = SimpleNamespace(slot_affinity=True, instant=False)
        return SimpleNamespace(
            spec=WorkerSpec("llamacpp", "m"), info=info, queue=SimpleNamespace(costs=costs)
        )

    latencies = Latencies(Settings(data_dir=tmp_path))
    assert latencies.pace("m") is None, "it was never opened"
    latencies.opened("m", engine(FELT / NEW / 2))
    assert latencies.pace("m") is None, "nobody feels that"
    latencies.opened("m", engine(5.0))
    pace = latencies.pace("m")
    assert pace is not None
    assert pace.reading == pytest.approx(5.0)
    assert pace.limit == CAREFUL
    assert "5.0 ms" in pace.why
    assert Latencies(Settings(data_dir=tmp_path, latency_factor=0)).pace("m") is None


@pytest.mark.parametrize(("extends", "read"), [(True, NEW), (False, SHORT + NEW)])
def test_what_reading_takes_is_told_by_what_is_read_of_a_prompt(
    tmp_path: Path, extends: bool, read: int
) -> None:
    spec = WorkerSpec("transformers", "m")
    (tmp_path / "latency.json").write_text(json.dumps({key_of(spec): [(SHORT, 120.0)]}))
    engine: Any = SimpleNamespace(spec=spec, info=SimpleNamespace(extends=extends))
    latencies = Latencies(Settings(data_dir=tmp_path))
    latencies.opened("m", engine)
    pace = latencies.pace("m")
    assert pace is not None
    assert pace.reading == pytest.approx(120.0 / read)


def measurable(monkeypatch: pytest.MonkeyPatch, timed: list[int]) -> Any:
    """An engine that takes a tenth of a second at any length; which lengths were timed."""

    async def filler(_: object, count: int) -> list[int]:
        await asyncio.sleep(0)
        return list(range(count))

    async def took(_engine: object, _slot: object, _ids: object, length: int) -> float:
        await asyncio.sleep(0)
        timed.append(length)
        return 100.0

    monkeypatch.setattr(latency, "_filler", filler)
    monkeypatch.setattr(latency, "_time", took)
    return SimpleNamespace(
        spec=WorkerSpec("llamacpp", "m"),
        info=SimpleNamespace(window=9000, slot_affinity=True, instant=False),
        queue=SimpleNamespace(busy=0),
        slot=lambda *_, **__: nullcontext(),
    )


async def test_two_conversations_at_once_measure_a_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []
    engine = measurable(monkeypatch, timed)
    latencies = Latencies(Settings(data_dir=tmp_path))
    await asyncio.gather(latencies.measure(engine), latencies.measure(engine))
    assert timed == list(latency.LENGTHS)


async def test_what_is_measured_beside_a_batch_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []
    engine = measurable(monkeypatch, timed)

    def crowded(*_: object, **__: object) -> Any:
        engine.queue.busy = 2  # it comes meanwhile
        return nullcontext()

    quiet, engine.slot = engine.slot, crowded
    latencies = Latencies(Settings(data_dir=tmp_path))
    await latencies.measure(engine)
    assert (timed, (tmp_path / "latency.json").exists()) == ([SHORT], False)
    engine.queue.busy, engine.slot = 0, quiet
    await latencies.measure(engine)
    assert timed == [SHORT, *latency.LENGTHS]


def test_another_version_of_the_engine_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WorkerSpec("llamacpp", "m")
    before = key_of(spec)
    monkeypatch.setattr("rallychat.latency.importlib.metadata.version", lambda _: "another")
    assert key_of(spec) != before
