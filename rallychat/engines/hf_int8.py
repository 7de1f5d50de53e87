"""Linear layers with 8-bit weights and a scale per output; activations and sums keep the model's precision.

A few rows at a time, which is what decoding is, cost the reading of the weights alone: half of 16 bits'. NVIDIA GPUs do
it in `hf_int8_kernel`, CPUs in torch's own kernel. Many rows (a prompt) are multiplied with weights widened for the
moment, as is everything where neither is at hand.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import linear

FEW: Final = 64
"""Rows up to which the kernel is the faster way."""


class Int8Linear(nn.Module):  # type: ignore[misc]
    """Stands for a linear layer."""

    def __init__(self, layer: Any, device: str) -> None:
        super().__init__()
        weight = layer.weight.data.to(device)
        scale = weight.float().abs().amax(1).clamp_min(1e-12) / 127
        quantised = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.data.to(device), requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self._small = _small(device, weight.dtype)

    def forward(self, hidden: Any) -> Any:
        """As the layer it stands for."""
        rows = hidden.numel() // self.in_features
        if self._small is not None and (rows <= FEW or not hidden.is_cuda):
            flat = hidden.reshape(rows, self.in_features)
            out = self._small(flat, self.weight, self.scale).view(*hidden.shape[:-1], self.out_features)
        else:
            out = linear(hidden, self.weight.to(hidden.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


def _small(device: str, dtype: Any) -> Any:
    """What multiplies a few rows; None: nothing special does."""
    if device == "cpu":  # with float32 torch's kernel is slower than widening
        return torch._weight_int8pack_mm if dtype == torch.bfloat16 else None
    return _kernel() if device == "cuda" else None


_tried: list[Any] = []


def _kernel() -> Any:
    """The GPU kernel, if it can be built here and is right; looked at once."""
    if not _tried:
        try:
            from rallychat.engines.hf_int8_kernel import few_rows

            _tried.append(few_rows if _right(few_rows) else None)
        except (ImportError, RuntimeError, OSError, ValueError):  # no triton, no compiler
            _tried.append(None)
    return _tried[0]


def _right(few_rows: Any, device: str = "cuda", dtype: Any = torch.float16) -> bool:
    """It gives what plain arithmetic gives, at sizes that divide its blocks and that do not."""
    for rows, inner, outer in ((1, 256, 64), (3, 288, 72), (FEW, 512, 128)):
        hidden = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randint(-127, 128, (outer, inner), device=device, dtype=torch.int8)
        scale = torch.rand(outer, device=device, dtype=dtype) / 127
        plain = hidden.float() @ weight.float().T * scale.float()
        error = (few_rows(hidden, weight, scale).float() - plain).norm() / plain.norm()
        if not bool(error < 5e-3):
            return False
    return True
