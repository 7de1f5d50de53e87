"""What a model needs is what its worker takes: weights, the caches of all slots, a little more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rallychat.catalog import Catalog, sizing
from rallychat.catalog.gguf import read_gguf
from rallychat.catalog.precision import Machine
from rallychat.catalog.sizing import batch_slots, needed_memory, slot_window
from rallychat.catalog.types import FileWeights, Model, NoWeights
from rallychat.settings import Settings

GIB = 2**30


def model(**given: object) -> Model:
    facts = {"id": "m", "name": "M", "family": "chatml", "window": 32768, "cache_bytes_per_token": 100_000}
    return Model.model_validate(
        facts | {"weights": FileWeights(kind="file", path="m.gguf", size=GIB)} | given
    )


def machine(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))


def test_the_window_is_halved_until_the_caches_take_a_quarter_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows = []
    for memory in (64 * GIB, 12 * GIB, 4 * GIB, GIB // 8):
        machine(monkeypatch, memory)
        windows.append(slot_window(model(), Settings(slots=4)))
    assert windows == [8192, 4096, 2048, 2048]


def test_what_the_user_says_holds_up_to_what_the_model_was_trained_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, GIB // 8)
    assert slot_window(model(), Settings(window=16384)) == 16384
    assert slot_window(model(window=4096), Settings(window=16384)) == 4096


def test_memory_counts_the_caches_of_all_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 64 * GIB)
    one, four = (needed_memory(model(), Settings(slots=slots)) for slots in (1, 4))
    assert one is not None
    assert four is not None
    assert four - one == 3 * 8192 * 100_000
    assert one > GIB + 8192 * 100_000


BILLION = 10**9


def checkpoint(**given: object) -> Model:
    facts = {"repo": "owner/base", "parameters": 7 * BILLION} | given
    return Model.model_validate(
        {"id": "m", "name": "M", "family": "chatml", "window": 2048, "checkpoint": facts}
        | {"cache_bytes_per_token": 500_000}
    )


def test_a_checkpoint_s_memory_is_told_in_each_precision() -> None:
    table = sizing.memory_by_precision(checkpoint(), Settings(slots=1))
    half, whole = table["bfloat16"], table["float32"]
    assert half == table["float16"] == 14 * BILLION + 2048 * 500_000 + sizing.OVERHEAD
    assert 2 * half - BILLION < whole < 2 * half + BILLION
    assert whole > half > table["int8"] > table["int4"] > 4 * BILLION


@pytest.mark.parametrize(
    ("room", "asked", "precision"),
    [
        (80, {}, "bfloat16"),
        (16, {}, "int8"),
        (10, {}, "int4"),
        (80, {"dtype": "float32"}, "float32"),
        (80, {"quantize": "int4"}, "int4"),
    ],
)
def test_the_precision_follows_the_memory_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, room: int, asked: dict[str, str], precision: str
) -> None:
    monkeypatch.setattr(sizing, "this_machine", lambda: Machine("cuda", (room * BILLION,)))
    settings = Settings.load(slots=1, **asked)
    chosen = sizing.precision(checkpoint(), settings)
    assert chosen is not None
    assert chosen.precision == precision
    assert sizing.needed_memory(checkpoint(), settings) == chosen.needed + sizing.OVERHEAD
    own = checkpoint().model_copy(update={"options": {"quantize": "int8"}})
    said = sizing.precision(own, Settings(slots=1))
    assert said is not None
    assert said.precision == "int8"


def test_parameters_are_guessed_from_the_size_and_may_not_be_known() -> None:
    guessed = checkpoint(parameters=None, size=14 * BILLION)
    assert sizing.parameter_count(guessed) == 7 * BILLION
    unknown = checkpoint(parameters=None)
    assert sizing.needed_memory(unknown, Settings()) is None
    assert sizing.memory_by_precision(unknown, Settings()) == {}


def test_a_file_may_say_it_itself_and_nothing_may_be_known() -> None:
    assert needed_memory(model(memory=7), Settings()) == 7
    assert needed_memory(model(weights=NoWeights(kind="none")), Settings()) is None


def test_every_model_of_the_menu_says_what_its_cache_takes() -> None:
    menu = Catalog.load(Settings()).models.values()
    assert [m.id for m in menu if not m.hidden and not m.cache_bytes_per_token] == []


@pytest.mark.real
def test_the_default_model_s_cache_is_as_its_weights_say(smollm2_gguf: Path) -> None:
    default = Catalog.load(Settings()).resolve("smollm2-135m-instruct")
    assert default.cache_bytes_per_token == read_gguf(smollm2_gguf).kv_bytes_per_token


def test_a_batch_takes_as_many_slots_as_its_caches_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "this_machine", lambda: Machine("cpu", (GIB,)))
    slots = []
    for memory in (64 * GIB, 12 * GIB, 4 * GIB, GIB // 8):
        machine(monkeypatch, memory)
        slots.append(batch_slots(model(), Settings()))
    assert slots == [16, 8, 4, 1]
    machine(monkeypatch, 64 * GIB)
    monkeypatch.setattr(sizing, "this_machine", lambda: Machine("cuda", (GIB,)))
    assert batch_slots(model(), Settings()) == 64
