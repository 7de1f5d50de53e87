"""What is known of those that were met last; of older ones it is forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(OrderedDict[_K, _V]):
    """A mapping that keeps what was set last.

    Args:
        most: entries, or what all entries together may weigh.
        size: what an entry weighs, where that is not 1.
    """

    def __init__(self, most: int, *, size: Callable[[_V], int] | None = None) -> None:
        super().__init__()
        self._most = most
        self._size = size

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while self and self._weight() > self._most:
            self.popitem(last=False)

    def _weight(self) -> int:
        return len(self) if self._size is None else sum(map(self._size, self.values()))
