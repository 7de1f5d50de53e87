"""Files that a power cut does not take back."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def settle(file: IO[Any]) -> None:
    """Everything written so far is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def appear(part: Path, target: Path) -> None:
    """Gives the finished file its name, in one step that survives a power cut."""
    part.replace(target)
    with suppress(OSError):  # a folder cannot be synced on every system
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
