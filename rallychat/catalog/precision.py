"""Which precision a checkpoint is loaded in, and what that takes: arithmetic on its size and on the memory there is.

Pure but for `this_machine`, which asks the operating system and `nvidia-smi`; torch is not needed for either.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

Device = Literal["cpu", "cuda", "mps"]
DType = Literal["float32", "bfloat16", "float16"]
Quantize = Literal["none", "int8", "int4"]
Precision = Literal["float32", "bfloat16", "float16", "int8", "int4"]
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "float16", "int8", "int4")

BYTES: Final[dict[Precision, float]] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.08,
    "int4": 0.62,
}
"""Bytes a parameter takes. int8 and int4 leave embeddings and head at 16 bit: of a 7B, a twenty-fifth."""
CONTEXT: Final = 2**30
"""Bytes taken beside weights and cache: CUDA's own, activations, captured graphs."""
SHARE: Final = 0.92
"""Of what is free; the rest is left to others and to fragments."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What can be computed on: the kind of device, the free bytes of each, and whether it computes in bfloat16."""

    device: Device
    memory: tuple[int, ...]
    bfloat16: bool = True

    def room(self, *, multi_gpu: bool = False) -> int:
        """Bytes a model may take here, on one device or on all of them."""
        found = self.memory if multi_gpu else self.memory[:1]
        return max(0, int(sum(found) * SHARE) - CONTEXT * len(found))


@dataclass(frozen=True, slots=True)
class Choice:
    """How to load it, with the estimate: `needed` bytes of `room`. `fits` is False where nothing does."""

    dtype: DType
    quantize: Quantize
    needed: int
    room: int

    @property
    def fits(self) -> bool:
        """It is expected to fit."""
        return self.needed <= self.room

    @property
    def precision(self) -> Precision:
        """The one word for it."""
        return self.dtype if self.quantize == "none" else self.quantize


def weight_bytes(parameters: int, precision: Precision) -> int:
    """Bytes the weights take once loaded."""
    return int(parameters * BYTES[precision])


def choose_precision(
    parameters: int,
    machine: Machine,
    *,
    cache: int = 0,
    dtype: DType | Literal["auto"] = "auto",
    quantize: Quantize | Literal["auto"] = "auto",
    multi_gpu: bool = False,
) -> Choice:
    """The most exact precision that fits; what was asked for is never overruled.

    Args:
        parameters: how many the checkpoint has.
        machine: where it is to run.
        cache: bytes of the slots' caches at 16 bits.
        dtype: of weights that are not quantised, and of all arithmetic.
        quantize: "auto" quantises only where 16 bits do not fit.
        multi_gpu: over all GPUs, where there are several never quantised, as the original does.
    """
    room = machine.room(multi_gpu=multi_gpu)
    half: DType = "bfloat16" if machine.bfloat16 and not multi_gpu else "float16"
    if machine.device == "cpu":
        half = "bfloat16"  # float16 is not computed on CPUs
    exact: tuple[DType, ...] = (dtype,) if dtype != "auto" else (half,)
    if dtype == "auto" and machine.device == "cpu":
        exact = ("float32", "bfloat16")
    smaller: tuple[Quantize, ...] = (quantize,) if quantize != "auto" else ("none", "int8", "int4")
    spread = multi_gpu and machine.device == "cuda" and len(machine.memory) > 1
    if spread or (multi_gpu and quantize == "auto"):
        smaller = ("none",)
    found = [_choice(parameters, one, "none", cache, room) for one in exact] if smaller[0] == "none" else []
    # Where weights are quantised, arithmetic is at 16 bits if nobody says otherwise.
    found += [_choice(parameters, exact[-1], one, cache, room) for one in smaller if one != "none"]
    return next((choice for choice in found if choice.fits), found[-1])


def _choice(parameters: int, dtype: DType, quantize: Quantize, cache: int, room: int) -> Choice:
    weights = weight_bytes(parameters, dtype if quantize == "none" else quantize)
    return Choice(dtype, quantize, weights + cache * (2 if dtype == "float32" else 1), room)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """What this machine computes checkpoints on, looked at once: NVIDIA GPUs, else Apple's, else the CPU."""
    import psutil  # not needed by workers, which import this package too

    if cards := _nvidia():
        return Machine("cuda", tuple(free for free, _ in cards), bfloat16=all(new for _, new in cards))
    available = psutil.virtual_memory().available
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Machine("mps", (available,), bfloat16=False)
    return Machine("cpu", (available,))


def _nvidia() -> list[tuple[int, bool]]:
    """Free bytes of each NVIDIA GPU, and whether it computes in bfloat16 (from compute capability 8 on)."""
    program = shutil.which("nvidia-smi")
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    query = [program, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return cards_of(said)


def cards_of(said: str) -> list[tuple[int, bool]]:
    """Reads `nvidia-smi`'s lines ("80000, 9.0"): free bytes, computes in bfloat16. What is no such line is left out."""
    found = []
    for line in said.splitlines():
        free, _, capability = line.partition(",")
        major = capability.strip().partition(".")[0]
        if free.strip().isdecimal() and major.isdecimal():
            found.append((int(free) * 2**20, int(major) >= 8))
    return found
