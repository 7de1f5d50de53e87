"""Captured steps, with a recorder that needs no GPU; what they are captured for, and models that cannot be captured."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import checkpoints
from tests.transformers_world import Plain, answered, opened, unread

import torch  # isort: skip
from rallychat.engines import hf_decoder  # isort: skip
from rallychat.engines.hf_adapters import AdapterRows  # isort: skip
from rallychat.engines.hf_graphs import Graphs, length_of, rows_of  # isort: skip
from rallychat.engines.transformers import Transformers  # isort: skip

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

PROMPTS = [list(range(5, 45)), list(range(7, 27)), list(range(9, 14))]


class Recorded(Graphs):
    """What is recorded is done again."""

    def _recorded(self, step: Callable[[], None]) -> Any:
        self._steps = getattr(self, "_steps", 0) + 1
        step()
        return SimpleNamespace(replay=step)


class Refused(Graphs):
    """A step that looks at the device cannot be captured."""

    def _recorded(self, step: Callable[[], None]) -> Any:
        step()
        raise RuntimeError("operation not permitted when stream is capturing")


class Stale(Graphs):
    """A step that decides on the CPU is captured as it went once."""

    def _recorded(self, step: Callable[[], None]) -> Any:
        step()
        return SimpleNamespace(replay=lambda: None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def capturing(llama: Path, plain: Plain) -> tuple[Transformers, Any]:
    """A backend whose steps are captured where the model allows it, and its runner."""
    backend = unread(opened(llama))
    with torch.inference_mode():
        runner = hf_decoder.SlotDecoder(plain.model, slots=4, window=256, adapters=AdapterRows(), graphs=True)
    backend._steps._runner = runner
    return backend, runner


async def expect_plain_answers(backend: Transformers, plain: Plain) -> None:
    expected = [plain.answer(prompt) for prompt in PROMPTS]
    assert [(await answered(backend, prompt, 2))[0] for prompt in PROMPTS] == expected
    together = await asyncio.gather(*(answered(backend, prompt, n) for n, prompt in enumerate(PROMPTS)))
    assert [ids for ids, _ in together] == expected


@pytest.mark.usefixtures("no_gpu")
async def test_captured_steps_give_the_answers_of_plain_generate(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_decoder, "Graphs", Recorded)
    plain = Plain(llama)
    backend, runner = capturing(llama, plain)
    await expect_plain_answers(backend, plain)
    assert {rows for rows, _ in runner._graphs._kept} > {1}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("kind", "why"), [(Refused, "not permitted when stream is capturing"), (Stale, "other scores")]
)
async def test_a_model_whose_step_cannot_be_captured_answers_without_graphs_and_it_is_told_why(
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Graphs],
    why: str,
) -> None:
    monkeypatch.setattr(hf_decoder, "Graphs", kind)
    plain = Plain(llama)
    with caplog.at_level(logging.WARNING):
        backend, _ = capturing(llama, plain)
    assert any(why in record.getMessage() for record in caplog.records)
    await expect_plain_answers(backend, plain)


@pytest.mark.usefixtures("no_gpu")
def test_no_step_is_captured_twice_however_many_others_come_between() -> None:
    slots, window = 64, 8192
    like = torch.zeros(1, 8)
    lengths = {length_of(needed, window) for needed in range(1, window + 1)}

    class Forward:
        device = "cpu"

        def __call__(self, first: int, ids: Any, columns: Any, length: int) -> Any:
            return like.expand(len(ids), 8)

    graphs = Recorded(Forward(), AdapterRows(), slots=slots, window=window, like=like)
    for _ in range(2):
        for count in range(1, slots + 1):
            for length in lengths:
                graphs.run([[1]] * count, [[length - 1]] * count, [-1] * count)
    assert graphs._steps == len(lengths) * len({rows_of(count, slots) for count in range(1, slots + 1)})
