"""Checkpoints of a given shape with random weights, made on the spot: what speed is measured on without a download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    window: int = 2048


SHAPES: Final[dict[str, Shape]] = {
    "llama-7b": Shape(hidden=4096, inner=11008, layers=32, heads=32, vocabulary=32000),
    "llama-1b": Shape(hidden=2048, inner=5632, layers=22, heads=32, vocabulary=32000),
    "llama-100m": Shape(hidden=768, inner=2048, layers=12, heads=12, vocabulary=32000),
    "tiny": Shape(hidden=64, inner=128, layers=2, heads=4, vocabulary=400),
}


def make_checkpoint(shape: Shape, folder: Path) -> Path:
    """A Llama of this shape in `folder`, in 16-bit safetensors files of a layer each."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.window,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        names = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    where: dict[str, str] = {}
    for file, group in _files(names):
        tensors = {name: _random(names[name], generator, device) for name in group}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(group, file)
    config.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    _tokenizer(shape.vocabulary).save_pretrained(folder)
    return folder


def make_adapter(shape: Shape, folder: Path) -> Path:
    """A LoRA of rank 16 on the four projections of attention, as Alpaca-LoRA's is."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    tensors = {}
    for layer in range(shape.layers):
        for target in targets:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(16, shape.hidden) / shape.hidden**0.5
            tensors[f"{name}.lora_B.weight"] = torch.randn(shape.hidden, 16) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 16,
        "lora_alpha": 16,
        "target_modules": list(targets),
        "base_model_name_or_path": "random",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _files(names: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        groups.setdefault(parts[2] if "layers" in parts else "rest", []).append(name)
    for at, group in enumerate(groups.values(), 1):
        yield f"model-{at:05}-of-{len(groups):05}.safetensors", group


def _random(shape: tuple[int, ...], generator: Any, device: str) -> Any:
    import torch

    if len(shape) == 1:  # a norm
        return torch.ones(shape, dtype=torch.bfloat16)
    drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * 0.02
    return drawn.to(torch.bfloat16).cpu()


def _tokenizer(vocabulary: int) -> Any:
    """One word per token: nothing is read here, only counted."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )
