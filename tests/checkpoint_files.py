"""Checkpoint repositories made without torch: tiny, of any architecture, right in all that is read before loading."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"
)


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of float16 zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def checkpoint_files(
    architecture: str = "LlamaForCausalLM",
    kind: str = "llama",
    *,
    width: int = 64,
    template: str = "",
    shards: int = 0,
    **config: Any,
) -> dict[str, bytes]:
    """A base: configuration, tokenizer and weights, in `shards` files if not in one."""
    facts = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    tokenizer = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": True},
            "9": {"content": "<x>", "special": False},
        },
    }
    files = {
        ".gitattributes": b"* lfs",
        "README.md": b"# Tiny",
        "config.json": _json(facts | config),
        "generation_config.json": _json({"eos_token_id": 2}),
        "tokenizer.json": _json({"added_tokens": []}),
        "tokenizer_config.json": _json(tokenizer | ({"chat_template": template} if template else {})),
    }
    weights = {f"model.layers.{n}.weight": (width, 8) for n in range(max(shards, 1))}
    if not shards:
        return files | {"model.safetensors": safetensors(weights)}
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    index = {"metadata": {}, "weight_map": dict(zip(weights, names, strict=True))}
    parts = {name: safetensors({tensor: weights[tensor]}) for tensor, name in index["weight_map"].items()}
    return files | {"model.safetensors.index.json": _json(index)} | parts


def adapter_files(base: str = "owner/base", *, width: int = 64, **config: Any) -> dict[str, bytes]:
    """A LoRA adapter for a base of this width."""
    facts = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "target_modules": ["q_proj"]}
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {f"{layer}.lora_A.weight": (4, width), f"{layer}.lora_B.weight": (width, 4)}
    return {
        "README.md": b"# LoRA",
        "adapter_config.json": _json(facts | config),
        "adapter_model.safetensors": safetensors(shapes),
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
