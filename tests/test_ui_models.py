from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rallychat.cards import ModelCard
from rallychat.catalog import Model, precision, sizing
from rallychat.catalog.load import SHIPPED, Catalog
from rallychat.catalog.sizing import parameter_count
from rallychat.choices import NOTHING
from rallychat.context.strategies import Remembering
from rallychat.settings import Settings
from rallychat.sources import Progress
from rallychat.sources.progress import FileProgress
from rallychat.ui import fragments
from rallychat.ui.machine import Machine, fit
from rallychat.ui.model_view import menu_of, view_of
from rallychat.ui.ways import ways_of
from tests.test_ui_routes import page

ALPACA = """
name = "Alpaca LoRA 7B"
family = "chatml"
license = "other"
[checkpoint]
repo = "decapoda-research/llama-7b-hf"
living_copy = "huggyllama/llama-7b"
architecture = "LlamaForCausalLM"
parameters = 6738415616
size = 13476839424
[[checkpoint.adapters]]
name = "alpaca"
repo = "tloen/alpaca-lora-7b"
size = 67201357
"""


def of_parameters(text: str) -> Model:
    return Model.model_validate(
        {
            "id": text or "none",
            "name": text or "None",
            "family": "echo",
            "engine": "echo",
            "parameters": text,
            "weights": {"kind": "none"},
        }
    )


@pytest.mark.parametrize(
    ("said", "counted"),
    [("135M", 135e6), ("1.7B", 1.7e9), ("12.8B", 12.8e9), ("8x7B", 7e9), ("", None), ("many", None)],
)
def test_a_number_of_parameters_is_read_as_authors_write_it(said: str, counted: float | None) -> None:
    assert parameter_count(of_parameters(said)) == counted


def test_models_stand_in_groups_by_size_and_those_of_unknown_size_last(tmp_path: Path) -> None:
    family = Catalog.load(Settings(data_dir=tmp_path)).families["echo"]
    models = [of_parameters(said) for said in ("", "7B", "135M", "65B", "3B", "360M")]
    machine = Machine(16 * 10**9, precision.Machine("cpu", (16 * 10**9,)))
    cards = [view_of(ModelCard(each, "absent", None, None, ""), family, machine) for each in models]
    menu = menu_of(cards, machine, {each.id: parameter_count(each) for each in models})
    assert [(group.name, [card.name for card in group.cards]) for group in menu.groups] == [
        ("Small", ["135M", "360M"]),
        ("Medium", ["3B"]),
        ("Large", ["7B"]),
        ("Huge", ["65B"]),
        ("Others", ["None"]),
    ]


@pytest.mark.parametrize(
    ("needed", "said"), [(None, "unknown"), (5, "fits"), (80, "fits"), (81, "tight"), (101, "too large")]
)
def test_memory_is_compared_with_what_the_machine_has(needed: int | None, said: str) -> None:
    assert fit(needed, 100) == said


async def test_the_landing_page_has_a_card_of_every_model_that_is_not_hidden(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        html = (await client.get("/ui/menu")).text
        listed = [model.id for model in service.catalog.models.values() if not model.hidden]
        assert len(listed) >= len(list((SHIPPED / "models").glob("*.toml"))) - 2
        for id_ in [*listed, "echo"]:
            assert html.count(f'data-model="{id_}"') == 1, id_


async def test_the_menu_that_is_asked_often_is_small(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        answer = await client.get("/ui/models")
        assert len(answer.content) < 200 * len(service.catalog.models) + 500


async def test_the_review_page_names_base_adapter_and_living_copy(tmp_path: Path) -> None:
    models = tmp_path / "catalog" / "models"
    async with page(tmp_path, models={"alpaca": ALPACA}) as (client, _):
        assert (models / "alpaca.toml").exists()
        html = (await client.get("/ui/models/review", params={"model": "alpaca"})).text
        for id_ in ("decapoda-research/llama-7b-hf", "tloen/alpaca-lora-7b", "huggyllama/llama-7b"):
            assert f'<a href="https://huggingface.co/{id_}"' in html
        assert "Living copy" in html


async def test_a_page_of_a_model_that_is_not_there_says_so(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, _):
        for path in ("/ui/models/review", "/ui/models/card", "/ui/models/state"):
            answer = await client.get(path, params={"model": "/etc/passwd"})
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "There is no model '/etc/passwd'."


async def test_what_is_chosen_is_kept_and_in_force_at_once(tmp_path: Path) -> None:
    async with page(tmp_path, models={"alpaca": ALPACA}) as (client, service):
        asked = {
            "model": "alpaca",
            "way": "transformers:int8",
            "answer": {"temperature": 0.1},
            "summary": {"max_tokens": 99},
            "summary_prompt": " Sum it all up. ",
        }
        told = (await client.post("/ui/models/choice", json=asked)).json()
        assert told["answer"]["in_force"]["temperature"] == 0.1
        assert told["summary"]["chosen"] == {"max_tokens": 99}
        assert "max_new_tokens: 99" in told["summary"]["yaml"]
        model = service.named("alpaca")
        assert model.options["quantize"] == "int8"
        assert service.sampling(model).temperature == 0.1
        assert service.summary_sampling(model).max_tokens == 99
        html = (await client.get("/ui/models/review", params={"model": "alpaca"})).text
        assert re.search(r'value="transformers:int8" checked', html)
        assert ">Sum it all up.</textarea>" in html
        summary = service.contexts.strategy(None, model, "summary")
        assert isinstance(summary, Remembering)
        assert summary.ask == "Sum it all up."
        await client.post("/ui/models/choice/reset", json={"model": "alpaca"})
        assert service.named("alpaca").options == {}
        assert service.contexts.strategy(None, service.named("alpaca"), "summary") == replace(summary, ask="")


async def test_a_generation_config_is_taken_over_from_yaml_or_refused_with_its_line(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        good = "generation_config:\n    temperature: 0.95\n    max_new_tokens: 7\n    num_beams: 1\n"
        asked = {"model": "slow", "part": "answer", "text": good}
        assert (await client.post("/ui/models/choice/yaml", json=asked)).status_code == 200
        assert service.sampling(service.named("slow")).max_tokens == 7
        refused = await client.post("/ui/models/choice/yaml", json={**asked, "text": good + "    topp: 1\n"})
        assert refused.status_code == 400
        assert "line 5: 'topp'" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "given", [{"host": "0.0.0.0", "no_auth": True}, {"allowed_hosts": ("chat.example",)}]
)
async def test_where_others_can_come_nobody_sets_models_up_on_the_page(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    async with page(tmp_path, **given) as (client, service):
        asked = {"model": "slow", "answer": {"temperature": 0.1}}
        refused = await client.post("/ui/models/choice", json=asked)
        assert refused.status_code == 409
        assert service.sampling(service.named("slow")).temperature != 0.1
        html = (await client.get("/ui/models/review", params={"model": "slow"})).text
        assert "<fieldset disabled>" in html or "disabled><legend>" in html


@pytest.mark.parametrize(
    ("gpus", "runs"),
    [((), "transformers:bfloat16"), ((8,), "transformers:int4"), ((80, 80), "transformers:bfloat16")],
)
def test_the_way_that_would_run_now_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...], runs: str
) -> None:
    settings = Settings(data_dir=tmp_path)
    model = Model.model_validate({**tomllib.loads(ALPACA), "id": "alpaca"})
    compute = precision.Machine(
        "cuda" if gpus else "cpu", tuple(gpu * 10**9 for gpu in gpus) or (24 * 10**9,)
    )
    monkeypatch.setattr(sizing, "this_machine", lambda: compute)
    ways = ways_of(model, NOTHING, settings, Machine(24 * 10**9, compute))
    assert [way.value for way in ways if way.would_run] == [runs]
    assert [way.name for way in ways if way.refusal] == ([] if gpus else ["float16"])


def test_a_download_of_several_files_shows_each(tmp_path: Path) -> None:
    family = Catalog.load(Settings(data_dir=tmp_path)).families["echo"]
    files = (FileProgress("config.json", 600, 600), FileProgress("model.safetensors", 1_000_000, 4_000_000))
    progress = Progress(1_000_600, 4_000_600, "download", files)
    machine = Machine(16 * 10**9, precision.Machine("cpu", (16 * 10**9,)))
    card = view_of(ModelCard(of_parameters("7B"), "downloading", progress, None, ""), family, machine)
    html = fragments.model_state(card)
    assert "1.0 MB of 4.0 MB, 2 files" in html
    assert '<progress max="1" value="0.2500" aria-label="model.safetensors">' in html


async def test_the_prompts_a_model_shows_are_told_with_it(tmp_path: Path) -> None:
    shown = ALPACA.replace("[checkpoint]", 'examples = ["Tell me about <alpacas>."]\n[checkpoint]')
    async with page(tmp_path, models={"alpaca": shown}) as (client, _):
        menu = (await client.get("/ui/models", params={"using": "alpaca"})).json()
        assert menu["examples"] == ["Tell me about <alpacas>."]
        html = (await client.get("/ui/models/review", params={"model": "alpaca"})).text
        assert "Tell me about &lt;alpacas&gt;." in html
