"""Reads the header of a safetensors file: names and shapes, no weights. The format: 8 bytes of length, then JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from rallychat.errors import SourceError

_LONGEST: Final = 100 * 2**20
"""Bytes of a header, as the format's authors bound it."""


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor.

    Raises:
        SourceError: it is not a (whole) safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST, path.stat().st_size - 8):
                raise ValueError("its header is longer than itself")
            table = json.loads(file.read(length))
        return {
            name: tuple(int(number) for number in tensor["shape"])
            for name, tensor in table.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as exc:
        raise SourceError(
            f"{path} is not a usable safetensors file: {exc}.", hint="remove it and fetch it again"
        ) from exc
