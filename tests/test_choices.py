from __future__ import annotations

import json
from pathlib import Path

import pytest

from rallychat.catalog import Catalog
from rallychat.choices import NOTHING, Choice, Choices, checked
from rallychat.errors import InvalidRequest
from rallychat.settings import Settings

BOTH = """
name = "Both"
family = "chatml"
[weights]
kind = "hub"
repo = "owner/model"
file = "tiny.gguf"
[checkpoint]
repo = "owner/checkpoint"
parameters = 1000000
[sampling]
temperature = 0.7
top_k = 40
"""


def world(folder: Path) -> tuple[Settings, Catalog]:
    models = folder / "catalog" / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / "both.toml").write_text(BOTH)
    settings = Settings(data_dir=folder)
    return settings, Catalog.load(settings)


def test_a_choice_lies_over_the_models_facts_and_survives_a_restart(tmp_path: Path) -> None:
    settings, catalog = world(tmp_path)
    given = {
        "engine": "transformers",
        "quantize": "int8",
        "multi_gpu": True,
        "sampling": {"temperature": 0.1},
    }
    kept = Choices.load(settings).keep(catalog.models["both"], checked(given), catalog)
    again = Choices.load(settings).over(catalog)
    for model in (kept.models["both"], again.models["both"]):
        assert model.engine == "transformers"
        assert model.options == {"quantize": "int8", "multi_gpu": True}
        assert model.sampling.value().as_dict() == {"temperature": 0.1, "top_k": 40}
    assert list(again.models) == list(catalog.models)


def test_choosing_nothing_again_leaves_no_trace(tmp_path: Path) -> None:
    settings, catalog = world(tmp_path)
    choices = Choices.load(settings)
    changed = choices.keep(
        catalog.models["both"], checked({"engine": "transformers", "dtype": "float32"}), catalog
    )
    restored = choices.keep(changed.models["both"], NOTHING, changed)
    assert restored.models["both"] == catalog.models["both"]
    assert json.loads((tmp_path / "choices.json").read_text()) == {}


def test_options_of_one_engine_are_not_told_to_the_other(tmp_path: Path) -> None:
    _, catalog = world(tmp_path)
    model = Choice(engine="llamacpp", quantize="int8").over(catalog.models["both"])
    assert (model.engine, model.options) == ("llamacpp", {})


def test_an_engine_that_cannot_run_a_model_is_not_chosen_for_it(tmp_path: Path) -> None:
    _, catalog = world(tmp_path)
    echo = catalog.models["echo"]
    assert Choice(engine="transformers").over(echo) == echo


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sampling": {"temperature": 9}}, "sampling.temperature"),
        ({"dtype": "float8"}, "dtype"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_choice_is_refused_by_name(given: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{named}'") as refused:
        checked(given)
    assert refused.value.param == named


@pytest.mark.parametrize("text", ["", "[]", "{", '{"both": {"engine": "abacus"}}', '{"both": 1}'])
def test_a_file_that_is_not_understood_stops_nothing(tmp_path: Path, text: str) -> None:
    settings, catalog = world(tmp_path)
    (tmp_path / "choices.json").write_text(text)
    assert Choices.load(settings).over(catalog) == catalog


def test_what_is_chosen_for_a_model_that_left_the_catalog_is_kept_for_its_return(tmp_path: Path) -> None:
    settings, catalog = world(tmp_path)
    (tmp_path / "choices.json").write_text('{"gone": {"dtype": "float32"}}')
    choices = Choices.load(settings)
    choices.keep(catalog.models["both"], Choice(dtype="float16"), catalog)
    assert set(json.loads((tmp_path / "choices.json").read_text())) == {"gone", "both"}


def test_a_flag_of_this_start_goes_before_what_was_kept_until_somebody_chooses_anew(tmp_path: Path) -> None:
    settings, catalog = world(tmp_path)
    kept = checked({"engine": "transformers", "quantize": "int8", "sampling": {"temperature": 0.1}})
    Choices.load(settings).keep(catalog.models["both"], kept, catalog)
    flagged = Settings.load(data_dir=tmp_path, engine="llamacpp")
    choices, plain = Choices.load(flagged), Catalog.load(flagged)
    started = choices.over(plain)
    assert started.models["both"].engine == "llamacpp"
    assert started.models["both"].sampling.value().temperature == 0.1
    chosen = choices.keep(plain.models["both"], kept, started)
    assert chosen.models["both"].engine == "transformers"
    assert choices.over(plain).models["both"].options == {"quantize": "int8"}
    assert Choices.load(settings).of("both") == kept
