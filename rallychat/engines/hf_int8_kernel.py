"""A few rows times 8-bit weights on an NVIDIA GPU: each weight is read once, as a byte. Needs triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x, w, s, y, rows, outer, inner, row_block: tl.constexpr, out_block: tl.constexpr, in_block: tl.constexpr
):  # fmt: skip
    """One block of `out_block` outputs for all rows."""
    at_row = tl.arange(0, row_block)
    at_out = tl.program_id(0) * out_block + tl.arange(0, out_block)
    at_in = tl.arange(0, in_block)
    sums = tl.zeros((row_block, out_block), dtype=tl.float32)
    for start in range(0, inner, in_block):
        inside = start + at_in < inner
        xs = tl.load(
            x + at_row[:, None] * inner + start + at_in[None, :],
            mask=(at_row < rows)[:, None] & inside[None, :],
            other=0.0,
        )
        ws = tl.load(
            w + at_out[:, None] * inner + start + at_in[None, :],
            mask=(at_out < outer)[:, None] & inside[None, :],
            other=0,
        )
        sums += tl.dot(xs, tl.trans(ws.to(xs.dtype)))
    scale = tl.load(s + at_out, mask=at_out < outer, other=0.0).to(tl.float32)
    tl.store(
        y + at_row[:, None] * outer + at_out[None, :],
        (sums * scale[None, :]).to(y.dtype.element_ty),
        mask=(at_row < rows)[:, None] & (at_out < outer)[None, :],
    )


def few_rows(hidden: Any, weight: Any, scale: Any) -> Any:
    """`hidden` [rows, inner] times `weight` [outer, inner] (int8), each output by its scale."""
    rows, inner = hidden.shape
    outer = weight.shape[0]
    hidden = hidden.contiguous()
    out = torch.empty((rows, outer), device=hidden.device, dtype=hidden.dtype)
    block = 16 if rows <= 16 else 32 if rows <= 32 else 64
    grid = (triton.cdiv(outer, 32),)
    _multiply[grid](
        hidden, weight, scale, out, rows, outer, inner,
        row_block=block, out_block=32, in_block=256 if block == 16 else 128, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out
