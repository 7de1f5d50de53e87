"""Fixtures that several subjects share."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's weights: the file `RALLYCHAT_TEST_GGUF` names, or fetched once into the user's data."""
    if named := os.environ.get("RALLYCHAT_TEST_GGUF"):
        return Path(named)
    from rallychat.catalog.load import Catalog
    from rallychat.settings import Settings
    from rallychat.sources import fetch

    settings = Settings()
    model = Catalog.load(settings).resolve("smollm2-135m-instruct")
    return fetch(model, settings, on_progress=lambda _: None)


@pytest.fixture(scope="session")
def taught_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that speaks in sentences, made once per run."""
    from tests import checkpoints

    return checkpoints.llama(tmp_path_factory.mktemp("taught") / "llama", taught=True)


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as a Hugging Face checkpoint: its GGUF's weights, widened to 32 bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    source = {"gguf_file": smollm2_gguf.name}
    model = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, dtype=torch.float32, **source)
    config = type(model.config)(**{**model.config.to_dict(), "quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # they are not quantised any more
    plain.load_state_dict(model.state_dict())
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_gguf.parent, **source).save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `hf` need the extra: without it they are skipped, and the summary says why."""
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        for item in items:
            if item.get_closest_marker("hf"):
                item.add_marker(pytest.mark.skip(reason=f"no {missing[0]} here: ./rally add hf"))
