"""CUDA graphs of the decoding step: one per number of rows and length, captured when first needed.

Without them a 7B spends three quarters of a token's time starting kernels, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from rallychat.engines.hf_adapters import AdapterRows

_SHORTEST: Final = 128


class Graphs:
    """Runs a step of single tokens on the first rows of the cache.

    Args:
        like: what `forward` gives.
    """

    def __init__(self, forward: Any, adapters: AdapterRows, *, slots: int, window: int, like: Any) -> None:
        self._forward = forward
        self._adapters = adapters
        self._slots = slots
        self._window = window
        self._kept: dict[tuple[int, int], Any] = {}
        """All of them: `rows_of` and `length_of` give few pairs. They share one pool of memory, and their scores."""
        self._ids = torch.zeros((slots, 1), dtype=torch.long, device=forward.device)
        self._columns = torch.full((slots, 1), window, dtype=torch.long, device=forward.device)
        self._scores = torch.zeros((slots, like.shape[-1]), dtype=like.dtype, device=like.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        """Of all rehearsals: cuBLAS keeps a workspace for each stream."""

    def run(self, ids: Sequence[Sequence[int]], columns: Sequence[Sequence[int]], chosen: list[int]) -> Any:
        """The scores of each row. Rows beside them are computed too, into padding, and cut off."""
        rows = rows_of(len(ids), self._slots)
        length = length_of(max(row[0] for row in columns) + 1, self._window)
        spare = rows - len(ids)
        if (rows, length) not in self._kept:
            self._kept[rows, length] = self._capture(rows, length)
        self._ids[:rows].copy_(torch.tensor([*ids, *[[0]] * spare]), non_blocking=True)
        self._columns[:rows].copy_(torch.tensor([*columns, *[[self._window]] * spare]), non_blocking=True)
        self._adapters.choose([*chosen, *[-1] * spare])
        self._kept[rows, length].replay()
        return self._scores[: len(ids)]

    def _capture(self, rows: int, length: int) -> Any:
        self._columns.fill_(self._window)  # what the rehearsals write is padding
        self._adapters.choose([-1] * rows)
        ids, columns = self._ids[:rows], self._columns[:rows]

        def step() -> None:
            self._scores[:rows] = self._forward(0, ids, columns, length)

        return self._recorded(step)

    def _recorded(self, step: Callable[[], None]) -> Any:
        """The step as something to replay."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with planned(), torch.cuda.stream(self._stream):
            for _ in range(2):
                step()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with planned(), torch.cuda.graph(graph, pool=self._pool):
                step()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
        return graph


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
