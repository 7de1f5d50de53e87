"""A Transformers backend in this process, and what plain `generate` says about the same checkpoint."""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("torch") is None:
    pytest.skip("no torch here: ./rally add hf", allow_module_level=True)

from rallychat.engines.backend import Step
from rallychat.engines.hf_tokenizer import CheckpointTokenizer as CheckpointTokenizer
from rallychat.engines.hf_tokenizer import TokenStream
from rallychat.engines.protocol import CompletionRequest, Done, Prefill, WorkerSpec
from rallychat.engines.slots import Slot
from rallychat.engines.transformers import Transformers


def opened(
    base: Path, *, slots: int = 4, window: int = 256, adapters: dict[str, Path] | None = None, **options: Any
) -> Transformers:
    said = {
        "adapters": {name: str(path) for name, path in (adapters or {}).items()},
        "device": "cpu",
    } | options
    spec = WorkerSpec(
        "transformers", "tiny", path=str(base), slots=slots, window=window, threads=1, options=said
    )
    return Transformers(spec, folder=Path(tempfile.mkdtemp(dir=base.parent)))


def unread(backend: Transformers) -> Transformers:
    """The backend, telling every token at once."""
    backend._tokenizer = _Unread(backend._tokenizer)
    return backend


async def answered(
    backend: Transformers, prompt: list[int], slot: int = 0, **asked: Any
) -> tuple[list[int], Done]:
    """The tokens of an answer, and how it ended."""
    ids: list[int] = []
    request = CompletionRequest(**({"prompt": prompt, "max_tokens": 20, "temperature": 0} | asked))
    async for event in backend.generate(request, Slot(slot)):
        match event:
            case Step():
                ids += event.ids
            case Done():
                return ids, event
            case Prefill():
                pass
    raise AssertionError("an answer without an end")


class _Unread(CheckpointTokenizer):
    """Random models write halves of characters, whose tokens would be held back."""

    def __init__(self, like: CheckpointTokenizer) -> None:
        self.__dict__ = like.__dict__

    def stream(self) -> TokenStream:
        stream = TokenStream(None)
        stream.feed = lambda ids: ("", tuple(ids))  # type: ignore[method-assign]
        return stream


class Plain:
    """`generate` of Transformers on one prompt at a time."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        self._kind = json.loads((base / "config.json").read_text())["model_type"]
        auto = AutoModelForSeq2SeqLM if self._kind == "t5" else AutoModelForCausalLM
        self.model = auto.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.model, str(adapter)).merge_and_unload()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.ends = {self.model.generation_config.eos_token_id}

    def answer(self, prompt: list[int], max_tokens: int = 20) -> list[int]:
        import torch

        ids = [*prompt, 1] if self._kind == "t5" else prompt
        tensor = torch.tensor([ids])
        out = self.model.generate(
            tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=max_tokens, do_sample=False
        )[0].tolist()
        new: list[int] = out[1:] if self._kind == "t5" else out[len(ids) :]
        return new[:-1] if new and new[-1] in self.ends else new
