"""What this machine has to run models in, as the menu compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil

from rallychat.catalog import Model, precision
from rallychat.ui.views import size

Fit = Literal["fits", "tight", "too large", "unknown"]

_ROOM = 0.8
"""Share of the memory that a model may take before it becomes tight for everything else."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory a GGUF file could have here, and what checkpoints are computed on."""

    memory: int
    compute: precision.Machine

    @classmethod
    def here(cls) -> Machine:
        """This one. Blocks for a moment the first time: the GPUs are asked for."""
        return cls(psutil.virtual_memory().total, precision.this_machine())

    def room(self, model: Model, *, multi_gpu: bool = False) -> int:
        """Bytes there are for this model: of the GPUs for a checkpoint where there are any, else of the machine."""
        if model.engine != "transformers" or self.compute.device != "cuda":
            return self.memory
        return sum(self.compute.memory) if multi_gpu else max(self.compute.memory)

    def said(self) -> str:
        """As a person reads it."""
        if self.compute.device != "cuda":
            return f"{size(self.memory)} of memory"
        cards = self.compute.memory
        gpus = (
            f"a GPU with {size(cards[0])}"
            if len(cards) == 1
            else f"{len(cards)} GPUs with {size(sum(cards))}"
        )
        return f"{size(self.memory)} of memory and {gpus}"


def fit(needed: int | None, room: int) -> Fit:
    """Whether so many bytes go into it."""
    if needed is None:
        return "unknown"
    if needed > room:
        return "too large"
    return "tight" if needed > room * _ROOM else "fits"


def share(needed: int | None, room: int) -> float:
    """What `needed` is of all there is, in percent, at most 100."""
    return round(min(100.0, 100 * (needed or 0) / room), 1) if room else 100.0
