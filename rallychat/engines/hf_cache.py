"""The slots' keys and values: one tensor per layer, allocated once, behind Transformers' `Cache`.

A step runs on neighbouring rows and sees their first `length` columns, so nothing is gathered or copied for it. Rows
are swapped where several answers come and go: that costs less than one step. The last column takes what is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: [rows, heads, columns, head size]."""

    is_compileable = True
    is_sliding = False

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self._shape = (rows, columns)

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Allocate; zeros, because what is masked must not be NaN."""
        rows, columns = self._shape
        self.keys, self.values = (
            torch.zeros(
                rows, states.shape[1], columns, states.shape[3], dtype=states.dtype, device=states.device
            )
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Unused: `SlotCache.update` knows where to write."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Unused: masks are given."""
        return self._shape[1], 0

    def get_seq_length(self) -> int:
        """Unknown: rows differ. Positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Columns of a row."""
        return self._shape[1] - 1

    def get_max_cache_shape(self) -> int:
        """The same, under its earlier name."""
        return self._shape[1] - 1


class SlotCache(Cache):  # type: ignore[misc]
    """Rows of `window` columns. `aim` says where the next forward pass reads and writes."""

    def __init__(self, rows: int, window: int, layers: int) -> None:
        super().__init__(layers=[_Layer(rows, window + 1) for _ in range(layers)])
        self.padding = window
        self._rows = slice(0, 1)
        self._length = 1
        self._where: dict[Any, tuple[Any, Any]] = {}

    def aim(self, first: int, columns: Any, length: int) -> None:
        """Row `first` and those after it, at `columns` [rows, tokens]; attention sees `length` columns."""
        self._rows = slice(first, first + columns.shape[0])
        self._length = length
        rows = torch.arange(columns.shape[0], device=columns.device)[:, None]
        self._where = {columns.device: (rows, columns)}

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Write, and return what attention may see."""
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.lazy_initialization(key_states, value_states)
        rows, columns = self._on(key_states.device)
        found = []
        for held, states in ((layer.keys, key_states), (layer.values, value_states)):
            view = held[self._rows]
            view[rows, :, columns] = states.transpose(1, 2)
            found.append(view[:, :, : self._length])
        return found[0], found[1]

    def swap(self, one: int, other: int, columns: int) -> None:
        """Exchange two rows as far as they hold anything."""
        for layer in self.layers:
            for held in (layer.keys, layer.values):
                kept = held[one, :, :columns].clone()
                held[one, :, :columns] = held[other, :, :columns]
                held[other, :, :columns] = kept

    @property
    def bytes_per_column(self) -> int:
        """What a token takes in a row, all layers together."""
        tensors = [held for layer in self.layers for held in (layer.keys, layer.values)]
        return sum(held.shape[1] * held.shape[3] * held.element_size() for held in tensors)

    def copy(self, row: int, columns: int) -> dict[str, Any]:
        """What a row holds, in memory of the machine: keys and values of each layer, [heads, columns, head size]."""
        return {
            f"{number}.{name}": held[row, :, :columns].to("cpu", copy=True).contiguous()
            for number, layer in enumerate(self.layers)
            for name, held in (("keys", layer.keys), ("values", layer.values))
        }

    def put(self, row: int, kept: dict[str, Any]) -> None:
        """Makes a row hold what `copy` gave."""
        for number, layer in enumerate(self.layers):
            for name, held in (("keys", layer.keys), ("values", layer.values)):
                states = kept[f"{number}.{name}"]
                held[row, :, : states.shape[1]] = states.to(held.device)

    def _on(self, device: Any) -> tuple[Any, Any]:
        if device not in self._where:  # a layer on another GPU
            rows, columns = next(iter(self._where.values()))
            self._where[device] = (rows.to(device), columns.to(device))
        return self._where[device]


def masks(columns: Any, length: int, *, sliding: int | None, additive: Any | None) -> Any:
    """[rows, 1, tokens, length]: each token sees the columns up to its own, the last `sliding` of them.

    Args:
        additive: the dtype of masks that are added to scores; None: masks are booleans.
    """
    seen = torch.arange(length, device=columns.device)
    mask = seen <= columns[:, None, :, None]
    if sliding is not None:
        mask = mask & (seen > columns[:, None, :, None] - sliding)
        mask = mask | (
            columns[:, None, :, None] >= length
        )  # padding sees anything: nothing at all would be NaN
    if additive is None:
        return mask
    return torch.zeros(mask.shape, dtype=additive, device=mask.device).masked_fill(
        ~mask, torch.finfo(additive).min
    )


def padded(rows: Sequence[Sequence[int]], filling: int, device: Any) -> Any:
    """The rows as one tensor, each moved to the right."""
    width = max(map(len, rows))
    return torch.tensor([[filling] * (width - len(row)) + list(row) for row in rows], device=device)
