"""CUDA graphs of the decoding step: one per number of rows and length, captured when first needed.

Without them a 7B spends three quarters of a token's time starting kernels, one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from rallychat.engines.hf_adapters import AdapterRows

_MOST: Final = 64
"""Graphs kept; the longest unused one goes first. They share one pool of memory."""
_SHORTEST: Final = 128


class Graphs:
    """Runs a step of single tokens on the first rows of the cache."""

    def __init__(self, forward: Any, adapters: AdapterRows, *, slots: int, window: int) -> None:
        self._forward = forward
        self._adapters = adapters
        self._slots = slots
        self._window = window
        self._kept: OrderedDict[tuple[int, int], tuple[Any, Any]] = OrderedDict()
        self._ids = torch.zeros((slots, 1), dtype=torch.long, device=forward.device)
        self._columns = torch.full((slots, 1), window, dtype=torch.long, device=forward.device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, ids: Sequence[Sequence[int]], columns: Sequence[Sequence[int]], chosen: list[int]) -> Any:
        """The scores of each row. Rows beside them are computed too, into padding, and cut off."""
        rows = rows_of(len(ids), self._slots)
        length = length_of(max(row[0] for row in columns) + 1, self._window)
        spare = rows - len(ids)
        if (rows, length) not in self._kept:
            self._capture(rows, length)
        self._kept.move_to_end((rows, length))
        graph, logits = self._kept[rows, length]
        self._ids[:rows].copy_(torch.tensor([*ids, *[[0]] * spare]), non_blocking=True)
        self._columns[:rows].copy_(torch.tensor([*columns, *[[self._window]] * spare]), non_blocking=True)
        self._adapters.choose([*chosen, *[-1] * spare])
        graph.replay()
        return logits[: len(ids)]

    def _capture(self, rows: int, length: int) -> None:
        self._columns.fill_(self._window)  # what the rehearsals write is padding
        self._adapters.choose([-1] * rows)
        ids, columns = self._ids[:rows], self._columns[:rows]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with planned(), torch.cuda.stream(stream):
            for _ in range(2):
                self._forward(0, ids, columns, length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with planned(), torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(0, ids, columns, length)
        self._kept[rows, length] = (graph, logits)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)


@contextmanager
def planned() -> Iterator[None]:
    """With cuDNN's attention, which plans anew for each shape: for a captured step once, and then it is the quickest.

    Prompts are of ever new lengths, and each plan takes longer than reading them does: 33 tokens on an H200 took 101 ms
    with it and 17 without, a token in a captured step 3.9 ms with it and 7.7 without (a Llama of 1B, 5,500 tokens).
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def rows_of(count: int, slots: int) -> int:
    """The number of rows a graph is captured for: 1, 2, 4, then every 4, from 32 on every 8."""
    step = 8 if count > 32 else 4
    found = count if count <= 2 else -(-count // step) * step
    return min(found, slots)


def length_of(needed: int, window: int) -> int:
    """The number of columns a graph is captured for: 128, 192, 256, 384, 512, 768, …"""
    found = _SHORTEST
    while found < needed:
        found += found // 2 if (found & (found - 1)) == 0 else found // 3
    return min(found, window)
