"""What this machine has to run models in, as the menu compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil

from rallychat.ui.views import size

Fit = Literal["fits", "tight", "too large", "unknown"]

_ROOM = 0.8
"""Share of the memory that a model may take before it becomes tight for everything else."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory a model could have here."""

    memory: int

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(psutil.virtual_memory().total)

    def fit(self, needed: int | None) -> Fit:
        """Whether so many bytes go into it."""
        if needed is None:
            return "unknown"
        if needed > self.memory:
            return "too large"
        return "tight" if needed > self.memory * _ROOM else "fits"

    def share(self, needed: int | None) -> float:
        """What `needed` is of all there is, in percent, at most 100."""
        return round(min(100.0, 100 * (needed or 0) / self.memory), 1)

    def said(self) -> str:
        """As a person reads it."""
        return f"{size(self.memory)} of memory"
