"""Linear layers in 8 or 4 bits, one by one on their way to the device. Embeddings and head stay as they are."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from rallychat.engines.hf_int8 import Int8Linear
from rallychat.errors import EngineUnavailable


def quantize(model: Any, bits: Literal["int8", "int4"], device: str) -> Any:
    """The model with its linear layers quantised, on `device`. Weights only: arithmetic stays at the model's dtype.

    int8 is `Int8Linear`: for one user on an H100 bitsandbytes' is many times slower, and torchao's several times.
    int4 is torchao's where the GPU has its kernel, else bitsandbytes' nf4.

    Raises:
        EngineUnavailable: the library for it is not installed.
    """
    head = model.get_output_embeddings()
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    ]
    convert = Int8Linear if bits == "int8" else _int4_kernel if _has_int4_kernel(model, device) else _nf4
    try:
        for path, layer in layers:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, convert(layer, device))
    except ImportError as exc:
        raise EngineUnavailable(
            f"{bits} needs {exc.name}, which is not installed.", hint="./rally add hf"
        ) from exc
    return model.to(device)


def _int4_kernel(layer: Any, device: str) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    holder = nn.Sequential(layer.to(device))
    quantize_(holder, Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d"))
    return holder[0]


def _has_int4_kernel(model: Any, device: str) -> bool:
    """Whether torch's own int4 kernel runs here: bfloat16 on NVIDIA GPUs from compute capability 8 on."""
    return device == "cuda" and model.dtype == torch.bfloat16 and torch.cuda.get_device_capability() >= (8, 0)


def _nf4(layer: Any, device: str) -> Any:
    from bitsandbytes.nn import Linear4bit, Params4bit

    small = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )
    small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        small.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return small.to(device)
