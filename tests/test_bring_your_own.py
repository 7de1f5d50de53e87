"""Models a person brings: a folder here or a repository of the hub, described by what they say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rallychat.catalog import Catalog
from rallychat.chat import ChatService
from rallychat.errors import FamilyNeeded, Gated, InvalidRequest, NoNetwork, NotFound, Unsupported
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.sources import fetch, is_here, resolve
from tests.checkpoint_files import TEMPLATE, adapter_files, checkpoint_files
from tests.hub_server import HubServer, Repository, hub_in_place

PACKED = b'{"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_in_place(monkeypatch, tmp_path) as running:
        running.repositories = {
            "owner/chat": Repository(
                checkpoint_files(template=TEMPLATE), license="mit", parameters=1_700_000_000
            ),
            "owner/base": Repository(checkpoint_files()),
            "owner/vicuna-7b": Repository(checkpoint_files()),
            "someone/lora": Repository(adapter_files()),
        }
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_checkpoint_of_the_hub_is_described_by_itself(server: HubServer, settings: Settings) -> None:
    for name in ("owner/chat", "https://huggingface.co/owner/chat"):
        model = resolve(name, Catalog.load(settings), settings)
        assert model.id == "owner/chat"
        assert (model.name, model.family, model.engine) == ("chat", "shipped", "transformers")
        assert (model.parameters, model.license, model.window) == ("1.7B", "mit", 2048)
        assert model.cache_bytes_per_token == 256
        assert model.checkpoint
        assert model.checkpoint.architecture == "LlamaForCausalLM"
        assert model.size == len(server.repositories["owner/chat"].files["model.safetensors"])
    assert not any(path.endswith(".safetensors") for path in server.fetched)


def test_an_adapter_of_the_hub_brings_its_base(server: HubServer, settings: Settings) -> None:
    model = resolve("someone/lora", Catalog.load(settings), settings, family="alpaca")
    assert model.checkpoint
    assert model.checkpoint.repo == "owner/base"
    assert [adapter.repo for adapter in model.adapters] == ["someone/lora"]
    assert (model.id, model.family) == ("someone/lora", "alpaca")


def test_an_adapter_may_be_laid_over_another_base_than_it_names(
    server: HubServer, settings: Settings
) -> None:
    server.repositories["someone/lora"].files |= adapter_files("gone/base")
    with pytest.raises(Gated, match="gone/base"):
        resolve("someone/lora", Catalog.load(settings), settings, family="alpaca")
    model = resolve("someone/lora", Catalog.load(settings), settings, family="alpaca", base="owner/base")
    assert model.checkpoint
    assert model.checkpoint.repo == "owner/base"


def test_an_adapter_of_the_hub_never_makes_a_folder_of_this_machine_its_base(
    server: HubServer, settings: Settings, tmp_path: Path
) -> None:
    own = written(checkpoint_files(), tmp_path / "own")
    server.repositories["someone/lora"].files |= adapter_files(str(own))
    with pytest.raises(Unsupported, match="no hub repository"):
        resolve("someone/lora", Catalog.load(settings), settings, family="alpaca")


def test_what_does_not_say_its_prompt_format_asks_for_one(server: HubServer, settings: Settings) -> None:
    catalog = Catalog.load(settings)
    with pytest.raises(FamilyNeeded, match="owner/base does not say") as caught:
        resolve("owner/base", catalog, settings)
    assert set(caught.value.families) == set(catalog.families) - {"echo", "shipped"}
    assert resolve("owner/base", catalog, settings, family="vicuna").family == "vicuna"
    with pytest.raises(NotFound, match="no family 'vicunna'") as wrong:
        resolve("owner/base", catalog, settings, family="vicunna")
    assert "vicuna" in wrong.value.hint


def test_a_name_is_recognised_by_the_families_patterns(server: HubServer, settings: Settings) -> None:
    assert resolve("owner/vicuna-7b", Catalog.load(settings), settings).family == "vicuna"


def test_a_template_that_is_shipped_goes_before_names_but_not_before_a_person(
    server: HubServer, settings: Settings
) -> None:
    catalog = Catalog.load(settings)
    assert resolve("owner/chat", catalog, settings).template == TEMPLATE
    said = resolve("owner/chat", catalog, settings, family="chatml")
    assert (said.family, said.template) == ("chatml", catalog.families["chatml"].template)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (checkpoint_files("WhisperModel", "whisper"), Unsupported, "WhisperModel"),
        ({"config.json": PACKED, "model.safetensors": b"x"}, Unsupported, "by the method 'gptq'"),
        ({"config.json": b"{}", "model.pt": b"x"}, Unsupported, "pickles only"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, Unsupported, "as its base"),
        ({"README.md": b"x"}, Unsupported, "neither a checkpoint nor an adapter nor a GGUF"),
        ({"a-Q4.gguf": b"GGUF", "b-Q8.gguf": b"GGUF"}, InvalidRequest, "holds 2 GGUF files"),
    ],
    ids=["speech", "packed", "pickles", "no base", "nothing", "several"],
)
def test_what_cannot_be_used_is_refused_by_name(
    server: HubServer, settings: Settings, files: dict[str, bytes], error: type[Exception], words: str
) -> None:
    server.repositories["owner/odd"] = Repository(dict(files))
    with pytest.raises(error, match=words):
        resolve("owner/odd", Catalog.load(settings), settings)


def test_the_only_gguf_file_of_a_repository_is_taken(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/packed"] = Repository({"m-Q4.gguf": b"GGUF", "mmproj-m.gguf": b"GGUF"})
    model = resolve("owner/packed", Catalog.load(settings), settings)
    assert (model.id, model.engine) == ("hub:owner/packed/m-Q4.gguf", "llamacpp")


def test_a_file_of_several_is_chosen_by_name(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/packed"] = Repository({"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    with pytest.raises(InvalidRequest) as caught:
        resolve("owner/packed", Catalog.load(settings), settings)
    assert "owner/packed:a.gguf" in caught.value.hint
    assert resolve("owner/packed:a.gguf", Catalog.load(settings), settings).engine == "llamacpp"


def test_offline_names_beyond_the_catalog_ask_nobody(server: HubServer, settings: Settings) -> None:
    offline = Settings(data_dir=settings.data_dir, offline=True)
    with pytest.raises(NoNetwork, match="stay offline"):
        resolve("owner/chat", Catalog.load(offline), offline)
    assert server.requests == []
    with pytest.raises(NotFound):
        resolve("no such name", Catalog.load(offline), offline)


def test_what_was_fetched_is_known_without_the_hub(server: HubServer, settings: Settings) -> None:
    for name in ("owner/chat", "someone/lora"):
        family = "alpaca" if "lora" in name else None
        model = resolve(name, Catalog.load(settings), settings, family=family)
        fetch(model, settings, on_progress=lambda _: None)
    offline = Settings(data_dir=settings.data_dir, offline=True)
    again = Catalog.load(offline)
    for name in ("owner/chat", "someone/lora"):
        assert is_here(again.find(name), offline)
    assert again.find("someone/lora").family == "alpaca"
    assert [name for name in again.models if name.startswith("owner/")] == ["owner/chat"]


def test_a_folder_with_a_checkpoint_is_a_model(settings: Settings, tmp_path: Path) -> None:
    folder = written(checkpoint_files(template=TEMPLATE, shards=2), tmp_path / "mine")
    model = Catalog.load(settings).resolve(str(folder))
    assert (model.id, model.name, model.family) == (str(folder), "mine", "shipped")
    assert model.checkpoint
    assert (model.checkpoint.path, model.checkpoint.parameters) == (str(folder), 2 * 64 * 8)
    assert fetch(model, settings, on_progress=lambda _: None) == folder


def test_a_folder_with_an_adapter_finds_its_base_here_or_on_the_hub(
    settings: Settings, tmp_path: Path
) -> None:
    base = written(checkpoint_files(template=TEMPLATE), tmp_path / "base")
    own = written(adapter_files(str(base)), tmp_path / "my lora")
    model = Catalog.load(settings).resolve(str(own))
    assert model.checkpoint
    assert (model.checkpoint.path, model.adapters[0].path, model.adapters[0].name) == (
        str(base),
        str(own),
        "my-lora",
    )
    assert model.family == "shipped"

    written(adapter_files("owner/base"), own)
    model = Catalog.load(settings).resolve(str(own), family="alpaca")
    assert model.checkpoint
    assert model.checkpoint.repo == "owner/base"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (checkpoint_files("WhisperModel", "whisper"), "WhisperModel"),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "pickles only"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "does not name its base"),
        ({"config.json": b"{}"}, "no weights"),
    ],
    ids=["speech", "pickles", "no base", "no weights"],
)
def test_a_folder_that_cannot_be_used_says_why(
    settings: Settings, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    folder = written(files, tmp_path / "odd")
    with pytest.raises(Unsupported, match=words):
        Catalog.load(settings).resolve(str(folder), family="alpaca")


async def test_a_model_brought_to_the_service_is_in_its_catalog_and_can_be_previewed(
    server: HubServer, settings: Settings
) -> None:
    async with ChatService.open(settings) as service:
        with pytest.raises(NotFound):
            service.named("owner/base")
        with pytest.raises(FamilyNeeded):
            await service.bring("owner/base")
        model = await service.bring("owner/base", family="alpaca")
        assert service.named("owner/base") == model
        rendered = await service.render([Message.of("user", "Hello")], model=model.id)
        assert "### Instruction:\nHello" in rendered.text
        assert not is_here(model, settings)


async def test_the_model_to_start_with_may_be_one_of_the_hub(server: HubServer, settings: Settings) -> None:
    start = Settings(data_dir=settings.data_dir, model="owner/base", family="vicuna")
    async with ChatService.open(start) as service:
        assert service.named(None).hub_ids == ("owner/base",)
        assert service.named("owner/base").family == "vicuna"
    with pytest.raises(FamilyNeeded):
        async with ChatService.open(Settings(data_dir=settings.data_dir, model="owner/base")):
            pass


async def test_the_seeds_two_flags_may_name_what_the_catalog_does_not_know(
    server: HubServer, settings: Settings
) -> None:
    server.repositories["someone/lora"].files |= adapter_files("gone/base")
    start = Settings(
        data_dir=settings.data_dir, base_url="owner/base", ft_ckpt_url="someone/lora", family="alpaca"
    )
    async with ChatService.open(start) as service:
        model = service.named(None)
        assert model.checkpoint
        assert (model.checkpoint.repo, model.hub_ids) == ("owner/base", ("someone/lora",))
