"""The tiny checkpoints the other tests use are what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import checkpoints

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_they_lie_as_the_hub_has_them(tmp_path: Path) -> None:
    base = checkpoints.llama(tmp_path / "llama")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"} <= files(base)
    assert "model.safetensors.index.json" in files(checkpoints.llama(tmp_path / "sharded", sharded=True))
    adapter = checkpoints.lora(base, tmp_path / "lora", base_id="someone/base")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files(adapter)
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/base"
    )


def test_each_is_its_architecture(tmp_path: Path) -> None:
    made = {"llama": checkpoints.llama, "neox": checkpoints.neox, "t5": checkpoints.t5}
    found = [
        json.loads((make(tmp_path / name) / "config.json").read_text())["architectures"]
        for name, make in made.items()
    ]
    assert found == [["LlamaForCausalLM"], ["GPTNeoXForCausalLM"], ["T5ForConditionalGeneration"]]
