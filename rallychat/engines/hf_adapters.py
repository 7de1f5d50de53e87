"""LoRA adapters: one is merged into the weights; several stay apart, and each row of a batch has its own.

PEFT reads them. For several its layers are replaced by `AdaptedLinear`: all adapters' halves in one tensor each, and a
row picks its pair by index, so a batch of mixed adapters is one pass over the base, which CUDA graphs can capture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rallychat.errors import EngineUnavailable


class AdapterRows:
    """Which adapter each row of the coming step uses: an index, -1 for none. Shared by all adapted layers."""

    def __init__(self, names: Sequence[str] = (), *, rows: int = 1, device: Any = "cpu") -> None:
        self.names = tuple(names)
        self._index = torch.full((rows,), len(self.names), dtype=torch.long, device=device)
        self._said: list[int] = []

    def number(self, name: str) -> int:
        """Of an adapter; -1: the base."""
        return self.names.index(name) if name in self.names else -1

    def choose(self, chosen: Sequence[int]) -> None:
        """For the rows of the coming step."""
        if (
            not self.names
            or (wanted := [len(self.names) if one < 0 else one for one in chosen]) == self._said
        ):
            return
        self._index[: len(wanted)].copy_(torch.tensor(wanted), non_blocking=True)
        self._said = wanted

    def of(self, rows: int, device: Any) -> Any:
        """The index of the first `rows` rows."""
        return self._index[:rows].to(device)


class AdaptedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer plus, per row, its adapter's low-rank part; the base's own rows get exactly nothing added."""

    def __init__(self, base: Any, rows: AdapterRows, parts: Mapping[str, tuple[Any, Any, float]]) -> None:
        super().__init__()
        self.base = base
        self._rows = rows
        like = next(iter(parts.values()))[0]
        rank = max(down.shape[0] for down, _, _ in parts.values())
        width, height = like.shape[1], next(iter(parts.values()))[1].shape[0]
        downs = torch.zeros(len(rows.names) + 1, width, rank, dtype=like.dtype)
        ups = torch.zeros(len(rows.names) + 1, rank, height, dtype=like.dtype)
        for name, (down, up, scale) in parts.items():
            at = rows.names.index(name)
            downs[at, :, : down.shape[0]] = down.T
            ups[at, : up.shape[1]] = up.T * scale
        self.downs = nn.Parameter(downs.to(like.device), requires_grad=False)
        self.ups = nn.Parameter(ups.to(like.device), requires_grad=False)

    def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """See the class. `hidden` is [rows, tokens, width]."""
        chosen = self._rows.of(hidden.shape[0], hidden.device)
        low = torch.bmm(hidden.to(self.downs.dtype), self.downs[chosen])
        return self.base(hidden, *args, **kwargs) + torch.bmm(low, self.ups[chosen]).to(hidden.dtype)


def merged(model: Any, folder: Path) -> Any:
    """The model with one adapter added to its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def attached(model: Any, folders: Mapping[str, Path], *, slots: int) -> tuple[Any, AdapterRows]:
    """The model with several adapters beside its weights.

    Raises:
        EngineUnavailable: one of them is more than low-rank parts of linear layers.
    """
    from peft import PeftModel

    (first, where), *others = folders.items()
    adapted = PeftModel.from_pretrained(model, str(where), adapter_name=first)
    for name, folder in others:
        adapted.load_adapter(str(folder), adapter_name=name)
    base = adapted.get_base_model()
    rows = AdapterRows(list(folders), rows=slots, device=base.get_input_embeddings().weight.device)
    for path, layer in _adapted_layers(base):
        parent = base.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], AdaptedLinear(layer.base_layer, rows, _parts(path, layer)))
    return base, rows


def _adapted_layers(base: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = []
    for path, layer in list(base.named_modules()):
        if isinstance(layer, AuxiliaryTrainingWrapper):
            raise _refused(path, "whole layers of its own")
        if isinstance(layer, BaseTunerLayer):
            if not (isinstance(layer, Linear) and isinstance(layer, LoraLayer)):
                raise _refused(path, f"a {type(layer).__name__}")
            found.append((path, layer))
    return found


def _parts(path: str, layer: Any) -> dict[str, tuple[Any, Any, float]]:
    """Of each adapter that has this layer: the two halves and their scale."""
    parts = {}
    for name, down in layer.lora_A.items():
        if layer.use_dora.get(name) or getattr(layer, "lora_bias", {}).get(name):
            raise _refused(path, "DoRA or biases")
        parts[name] = (down.weight.data, layer.lora_B[name].weight.data, float(layer.scaling[name]))
    return parts


def _refused(path: str, what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"An adapter has {what} in {path}: such adapters cannot be kept apart from each other.",
        hint="load it as the model's only adapter: then it is merged",
    )
