"""What to start with: base and adapter name a model, generation configs are found, notes say what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rallychat.catalog import Catalog, Sampling
from rallychat.catalog.references import local_model
from rallychat.catalog.starting import Start, start
from rallychat.catalog.types import FileWeights
from rallychat.chat import ChatService
from rallychat.choices import checked
from rallychat.errors import InvalidRequest, NotFound, SettingsError
from rallychat.settings import Settings
from tests.gguf_file import gguf_bytes

ADAPTED = """
name = "Camelid 7B"
family = "echo"
[checkpoint]
repo = "gone/camelid-7b-hf"
living_copy = "copies/camelid-7b"
architecture = "LlamaForCausalLM"
size = 100
[[checkpoint.adapters]]
name = "lora"
repo = "tuner/camelid-lora-7b"
size = 10
"""
WHOLE = """
name = "Stable 7B"
family = "echo"
[checkpoint]
repo = "lab/stable-7b"
architecture = "GPTNeoXForCausalLM"
size = 100
"""


def begin(folder: Path, **given: Any) -> Start:
    models = folder / "catalog" / "models"
    models.mkdir(parents=True)
    (models / "camelid-lora-7b.toml").write_text(ADAPTED)
    (models / "stable-7b.toml").write_text(WHOLE)
    settings = Settings(data_dir=folder, **given)
    return start(settings, Catalog.load(settings))


def test_where_nothing_is_named_the_settings_stay(tmp_path: Path) -> None:
    begun = begin(tmp_path, model="echo")
    assert (begun.settings.model, begun.notes) == ("echo", ())


def test_a_base_and_its_adapter_are_the_catalogs_model(tmp_path: Path) -> None:
    begun = begin(tmp_path, base_url="gone/camelid-7b-hf", ft_ckpt_url="tuner/camelid-lora-7b")
    assert (begun.settings.model, begun.notes) == ("camelid-lora-7b", ())
    assert begun.catalog.resolve("camelid-lora-7b") == Catalog.load(begun.settings).find("camelid-lora-7b")


def test_an_adapter_alone_brings_its_base(tmp_path: Path) -> None:
    assert begin(tmp_path, ft_ckpt_url="tuner/camelid-lora-7b").settings.model == "camelid-lora-7b"


def test_a_whole_checkpoint_is_the_catalogs_model(tmp_path: Path) -> None:
    assert begin(tmp_path, base_url="lab/stable-7b").settings.model == "stable-7b"


def test_another_copy_of_the_base_takes_its_place(tmp_path: Path) -> None:
    begun = begin(tmp_path, base_url="mirror/camelid", ft_ckpt_url="tuner/camelid-lora-7b")
    checkpoint = begun.catalog.resolve(begun.settings.model).checkpoint
    assert checkpoint is not None
    assert (checkpoint.repo, checkpoint.path, checkpoint.size) == ("mirror/camelid", "", None)
    assert [each.repo for each in checkpoint.adapters] == ["tuner/camelid-lora-7b"]


def test_a_folder_can_be_the_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    begun = begin(tmp_path, base_url=str(tmp_path / "base"), ft_ckpt_url="tuner/camelid-lora-7b")
    checkpoint = begun.catalog.resolve(begun.settings.model).checkpoint
    assert checkpoint is not None
    assert (checkpoint.repo, checkpoint.path) == ("", str(tmp_path / "base"))


def test_an_adapter_left_over_from_another_base_is_left_out_and_said(tmp_path: Path) -> None:
    begun = begin(tmp_path, base_url="lab/stable-7b", ft_ckpt_url="tuner/camelid-lora-7b")
    assert begun.settings.model == "stable-7b"
    assert begun.notes == (
        "'tuner/camelid-lora-7b' was not trained on 'lab/stable-7b', which answers without it.",
    )


def test_a_base_that_is_no_name_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="neither a hub repository nor a folder"):
        begin(tmp_path, base_url="camelid", ft_ckpt_url="tuner/camelid-lora-7b")


def test_a_model_without_a_base_takes_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no base below it"):
        begin(tmp_path, base_url="owner/other", ft_ckpt_url="lab/stable-7b")


@pytest.mark.parametrize("named", ["blob", "link.gguf", "owner/repo:file.gguf"])
async def test_a_model_is_known_by_what_the_server_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blob").write_bytes(gguf_bytes({"general.architecture": "llama"}, tensors=()))
    (tmp_path / "link.gguf").symlink_to("blob")
    async with ChatService.open(Settings(data_dir=tmp_path / "data", model=named)) as service:
        default = service.named(None)
        assert (service.named(named), service.knows(named)) == (default, True)
        assert default.name == Path(named.rpartition(":")[2]).stem
        assert (await service.bring(named)).id == default.id


async def test_a_link_and_its_target_are_one_model_which_is_known_by_both(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gguf_bytes({"general.architecture": "llama"}, tensors=()))
    (tmp_path / "link.gguf").symlink_to("blob")
    names = [str(tmp_path / "blob"), str(tmp_path / "link.gguf")]
    async with ChatService.open(Settings(data_dir=tmp_path / "data", model=names[0])) as service:
        with pytest.raises(NotFound):
            service.named(names[1])
        await service.bring(names[1])
        assert service.named(names[1]) == service.named(names[0])


def test_parts_of_split_weights_are_looked_for_beside_the_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gguf_bytes({"general.architecture": "llama"}, tensors=()))
    link = tmp_path / "big-00001-of-00002.gguf"
    link.symlink_to("blob")
    assert local_model(link).weights == FileWeights(kind="file", path=str(link), size=link.stat().st_size)


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        begin(tmp_path, ft_ckpt_url="./nowhere")


# --- generation configs -------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the shipped generation configs."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "gen_config_test.yaml").write_text("generation_config:\n  temperature: 0.3\n  top_k: 7\n")
    monkeypatch.setattr("rallychat.catalog.generation.SHIPPED", folder)
    return folder


async def test_a_shipped_generation_config_is_found_by_its_name_and_said(
    tmp_path: Path, shipped: Path
) -> None:
    wanted = Path("configs/gen_config_test.yaml")
    settings = Settings(data_dir=tmp_path, model="echo", gen_config_path=wanted)
    async with ChatService.open(settings) as service:
        assert service.notes == (
            "'configs/gen_config_test.yaml' is not there; RallyChat's own gen_config_test.yaml is used.",
        )


def test_what_a_generation_config_asks_for_and_is_done_otherwise_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("generation_config:\n  max_length: 150\n  min_length: 50\n")
    begun = begin(tmp_path, model="echo", gen_config_summarization_path=own)
    assert len(begun.notes) == 2


async def test_a_generation_config_lies_between_what_is_asked_and_what_the_model_says(
    tmp_path: Path,
) -> None:
    models = tmp_path / "catalog" / "models"
    models.mkdir(parents=True)
    (models / "echo.toml").write_text("[sampling]\ntop_k = 1\nmin_p = 0.2\n")
    own = tmp_path / "own.yaml"
    own.write_text("generation_config:\n  temperature: 0.3\n  top_k: 7\n")
    settings = Settings(
        data_dir=tmp_path, model="echo", gen_config_path=own, gen_config_summarization_path=own
    )
    async with ChatService.open(settings) as service:
        merged = service.sampling(service.resolve(None), Sampling(temperature=1.0))
        assert (merged.temperature, merged.top_k, merged.min_p) == (1.0, 7, 0.2)
        summary = service.summary_sampling(service.resolve(None))
        assert (summary.temperature, summary.top_k, summary.max_tokens) == (0.3, 7, 512)


async def test_a_generation_config_goes_before_what_was_chosen_on_the_page_for_answers_and_summaries(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("generation_config:\n  temperature: 0.3\n")
    settings = Settings(
        data_dir=tmp_path, model="echo", gen_config_path=own, gen_config_summarization_path=own
    )
    chosen = {"temperature": 0.9, "top_k": 5}
    async with ChatService.open(settings) as service:
        await service.choose("echo", checked({"sampling": chosen, "summary": chosen}))
        model = service.resolve(None)
        for sampling in (service.sampling(model), service.summary_sampling(model)):
            assert (sampling.temperature, sampling.top_k) == (0.3, 5)


async def test_a_family_without_sampling_follows_its_generation_config(tmp_path: Path) -> None:
    async with ChatService.open(Settings(data_dir=tmp_path, model="echo")) as service:
        old = service.resolve(None).model_copy(update={"family": "alpaca"})
        merged = service.sampling(old, Sampling(temperature=0.0))
        assert (merged.temperature, merged.repetition_penalty, merged.max_tokens) == (0.0, 1.2, 256)
        unknown = old.model_copy(update={"family": "shipped"})
        assert service.sampling(unknown, Sampling()) == Sampling()


async def test_a_wrong_generation_config_keeps_the_service_from_opening(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("generation_config:\n  num_beams: 4\n")
    with pytest.raises(SettingsError, match="line 2"):
        async with ChatService.open(Settings(data_dir=tmp_path, model="echo", gen_config_path=own)):
            pass
