"""Every model of the catalog, end to end: found by its names, looked at, fetched, and its prompt rendered.

The tests' hub answers each with a tiny checkpoint of its architecture, or a tiny GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from rallychat import templates
from rallychat.catalog import Catalog, Model, Sampling, architectures
from rallychat.catalog.sizing import parameter_count
from rallychat.catalog.types import Adapter, Checkpoint, HubWeights
from rallychat.chat import ChatService
from rallychat.messages import Message
from rallychat.pool import Pool
from rallychat.settings import Settings
from rallychat.sources import Downloads, fetch, hub, is_here, remove, weights_path
from tests.checkpoint_files import TEMPLATE, adapter_files, checkpoint_files
from tests.gguf_file import gguf_bytes
from tests.hub_server import HubServer, Repository

MODELS = [model for model in Catalog.load(Settings()).models.values() if model.engine != "echo"]
WITH_CHECKPOINT = [model.id for model in MODELS if model.checkpoint]
ON_THE_HUB = [model.id for model in MODELS if isinstance(model.weights, HubWeights)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with pytest.MonkeyPatch.context() as patched, HubServer() as running:
        patched.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patched.delenv("HF_TOKEN", raising=False)
        patched.setenv("no_proxy", "127.0.0.1")
        patched.setenv("HF_ENDPOINT", running.endpoint)
        patched.setattr(hub, "PATIENCE", (0.0, 0.0))
        yield running
        close_session()


def kind_of(architecture: str) -> str:
    """transformers' word for an architecture that it knows."""
    return next(kind for kind, classes in architectures.shipped().items() if architecture in classes)


def put(server: HubServer, part: Checkpoint | Adapter, files: dict[str, bytes]) -> None:
    name = part.living_copy if isinstance(part, Checkpoint) and part.living_copy else part.repo
    server.repositories[name] = Repository(files, ("main", part.revision))


def served(server: HubServer, model: Model) -> None:
    """The hub has what the model needs; a base that has left it is there under its copy's name only."""
    server.repositories = {}
    base = model.checkpoint
    assert base
    files = checkpoint_files(base.architecture, kind_of(base.architecture), template=TEMPLATE)
    put(server, base, files)
    for adapter in model.adapters:
        put(server, adapter, adapter_files(base.repo))


@pytest.mark.parametrize("name", WITH_CHECKPOINT)
async def test_a_checkpoint_of_the_catalog_is_found_fetched_and_rendered(
    name: str, server: HubServer, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, engine="transformers")
    catalog = Catalog.load(settings)
    model = catalog.find(name)
    assert {catalog.find(hub_id).engine_id for hub_id in model.hub_ids} == {model.engine_id}
    assert model.engine == "transformers"
    assert parameter_count(model)
    served(server, model)

    path = fetch(model, settings, on_progress=lambda _: None)
    assert is_here(model, settings)
    assert path == weights_path(model, settings)
    assert (path / "model.safetensors").is_file()

    pool = Pool(settings, Downloads(settings))
    template = await templates.of_model(model, catalog.family(model), path, pool)
    assert "Hello there" in template.render([Message.of("user", "Hello there")]).text
    assert remove(model, settings) > 0
    assert not is_here(model, settings)


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_gguf_file_of_the_catalog_is_fetched(name: str, server: HubServer, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine="llamacpp")
    model = Catalog.load(settings).find(name)
    weights = model.weights
    assert isinstance(weights, HubWeights)
    content = gguf_bytes({"general.architecture": "llama"}, tensors=())
    server.repositories = {weights.repo: Repository({weights.file: content}, ("main", weights.revision))}
    assert fetch(model, settings, on_progress=lambda _: None).read_bytes() == content
    assert is_here(model, settings)


@pytest.mark.hf
@pytest.mark.parametrize("name", ["alpaca-lora-7b", "stablelm-tuned-alpha-7b", "flan-alpaca-xl"])
async def test_a_tiny_one_of_its_kind_goes_all_the_way_to_an_answer(
    name: str, server: HubServer, tmp_path: Path
) -> None:
    from tests import checkpoints

    make = {"LlamaForCausalLM": checkpoints.llama, "GPTNeoXForCausalLM": checkpoints.neox}
    settings = Settings(data_dir=tmp_path / "data", model=name, window=512, slots=1)
    model = Catalog.load(settings).find(name)
    assert model.checkpoint
    base = make.get(model.checkpoint.architecture, checkpoints.t5)(tmp_path / "base")
    server.repositories = {}
    put(server, model.checkpoint, dict(Repository.of(base).files))
    for adapter in model.adapters:
        lora = checkpoints.lora(base, tmp_path / "lora", base_id=model.checkpoint.repo)
        put(server, adapter, dict(Repository.of(lora).files))
    async with ChatService.open(settings) as service:
        answer = await service.ask("Hello there", sampling=Sampling(temperature=0, max_tokens=12))
        assert answer.strip()
        engine = service.pool.find(name)
        assert engine is not None
        assert engine.info.engine == "transformers"
        again = await service.ask("Hello there", sampling=Sampling(temperature=0, max_tokens=12))
        assert again == answer


@pytest.mark.hf
async def test_several_adapters_of_one_base_answer_from_one_engine_each_in_its_own_way(
    tmp_path: Path,
) -> None:
    from tests import checkpoints

    base = checkpoints.llama(tmp_path / "base")
    loras = [checkpoints.lora(base, tmp_path / f"lora{seed}", seed=seed) for seed in (1, 2)]
    settings = Settings(data_dir=tmp_path / "data", model="seven", window=512, slots=2)
    file = settings.catalog_dir / "models" / "seven.toml"
    file.parent.mkdir(parents=True)
    adapters = "".join(f'[[checkpoint.adapters]]\nname = "{lora.name}"\npath = "{lora}"\n' for lora in loras)
    file.write_text(f'name = "Seven"\nfamily = "shipped"\n[checkpoint]\npath = "{base}"\n{adapters}')
    greedy = Sampling(temperature=0, max_tokens=12)
    async with ChatService.open(settings) as service:
        names = ("seven", "seven:lora1", "seven:lora2")
        first = [await service.ask("Hello there", model=name, sampling=greedy) for name in names]
        assert len(set(first)) == 3
        assert [await service.ask("Hello there", model=name, sampling=greedy) for name in names] == first
        assert len(service.pool.engines()) == 1
