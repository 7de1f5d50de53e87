"""Writes small GGUF files, right or wrong in one place each."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

TOKENS = ("<|start|>", "<|end|>", "a", "b", "ab")
CHAT: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "mit",
    "llama.context_length": 4096,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": list(TOKENS),
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}


def gguf_bytes(
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[tuple[int, ...]] = ((64, 5), (64,)),
    version: int = 3,
) -> bytes:
    """A GGUF header: metadata (the values' Python types choose theirs) and tensors of these shapes, without data."""
    chosen = CHAT if metadata is None else metadata
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(chosen))]
    for key, value in chosen.items():
        parts += [_text(key), _value(value)]
    for number, shape in enumerate(tensors):
        parts += [
            _text(f"tensor{number}"),
            struct.pack("<I", len(shape)),
            *(struct.pack("<Q", n) for n in shape),
        ]
        parts.append(struct.pack("<IQ", 0, 0))
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        case _:
            return struct.pack("<IIQ", 9, 5, len(value)) + b"".join(struct.pack("<i", item) for item in value)
