"""How much memory a model takes, and how long a window it is therefore given."""

from __future__ import annotations

import re
from typing import Final

from rallychat.catalog.precision import (
    PRECISIONS,
    Choice,
    Precision,
    choose_precision,
    this_machine,
    weight_bytes,
)
from rallychat.catalog.types import Model
from rallychat.settings import Settings

DEFAULT_WINDOW = 8192
"""Tokens per slot where the user says nothing and the model was trained for at least as many."""
SHORTEST_WINDOW = 2048
"""Tokens below which a window is not halved to save memory."""
CACHE_SHARE = 0.25
"""Share of this machine's memory that the slots' caches may take before the window is halved."""
MOST_SLOTS = 16
"""Slots of a batch on a CPU."""
OVERHEAD = 96 * 2**20
"""Bytes a worker takes beside weights and cache."""

BYTES_PER_PARAMETER: Final = {
    "Q4_0": 0.57,
    "Q4_1": 0.63,
    "Q4_K_M": 0.61,
    "Q5_K_M": 0.72,
    "Q6_K": 0.83,
    "Q8_0": 1.07,
    "MXFP4": 0.58,
}
"""Of whole GGUF files, embeddings and header included; anything else is taken for 16 bit."""
_SCALES: Final = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parameter_count(model: Model) -> int | None:
    """How many parameters it has: as counted, else as its authors say it, 135e6 for "135M", else by its size."""
    if model.checkpoint and model.checkpoint.parameters:
        return model.checkpoint.parameters
    found = re.search(r"(\d+(?:\.\d+)?)\s*([KMBT])\b", model.parameters, re.IGNORECASE)
    if found:
        return int(float(found[1]) * _SCALES[found[2].upper()])
    return model.checkpoint.size // 2 if model.checkpoint and model.checkpoint.size else None


def weights_size(model: Model) -> int | None:
    """Bytes of what its engine runs; where the catalog does not say, estimated from the number of parameters."""
    if model.size:
        return model.size
    count = parameter_count(model)
    packed = model.quantization if model.engine == "llamacpp" else ""
    return int(count * BYTES_PER_PARAMETER.get(packed, 2.0)) if count else None


def slot_window(model: Model, settings: Settings) -> int:
    """Tokens each slot holds: as the settings say, else what model and memory allow, at most `DEFAULT_WINDOW`."""
    if settings.window is not None:
        return min(settings.window, model.window)
    window = min(DEFAULT_WINDOW, model.window)
    affordable = _memory(model) * CACHE_SHARE
    while window >= 2 * SHORTEST_WINDOW and cache_size(model, settings, window) > affordable:
        window //= 2
    return window


def cache_size(model: Model, settings: Settings, window: int) -> int:
    """Bytes of the caches of all slots; 0 if the model does not say what a token takes."""
    return settings.slots * window * (model.cache_bytes_per_token or 0)


def needed_memory(model: Model, settings: Settings) -> int | None:
    """Bytes the model's worker needs with these settings; None if nothing is known of its weights."""
    if model.memory is not None:
        return model.memory
    if model.engine == "transformers":
        chosen = precision(model, settings)
        return chosen.needed + OVERHEAD if chosen else None
    weights = weights_size(model)
    if not weights:
        return None
    return weights + cache_size(model, settings, slot_window(model, settings)) + OVERHEAD


def precision(model: Model, settings: Settings) -> Choice | None:
    """How a checkpoint will be loaded here, with the estimate; None if its number of parameters is not known."""
    parameters = parameter_count(model)
    if parameters is None:
        return None
    asked = {"dtype": settings.dtype, "quantize": settings.quantize, "multi_gpu": settings.multi_gpu} | {
        name: model.options[name] for name in ("dtype", "quantize", "multi_gpu") if name in model.options
    }
    cache = cache_size(model, settings, slot_window(model, settings))
    return choose_precision(parameters, this_machine(), cache=cache, **asked)


def memory_by_precision(model: Model, settings: Settings) -> dict[Precision, int]:
    """Bytes a checkpoint's worker needs in each precision; empty if its number of parameters is not known."""
    parameters = parameter_count(model)
    if parameters is None:
        return {}
    cache = cache_size(model, settings, slot_window(model, settings)) + OVERHEAD
    # caches are kept as the arithmetic is: in float32 they take twice the room
    extra = {one: cache * (2 if one == "float32" else 1) for one in PRECISIONS}
    return {one: weight_bytes(parameters, one) + extra[one] for one in PRECISIONS}


def _memory(model: Model) -> int:
    """Bytes of the memory that the model's caches lie in."""
    machine = this_machine() if model.engine == "transformers" else None
    if machine and machine.device == "cuda":
        return machine.memory[0]
    import psutil  # not needed by workers, which import this package too

    return int(psutil.virtual_memory().total)


def batch_slots(model: Model, settings: Settings) -> int:
    """Answers at once that give most tokens a second where nobody waits: many, as far as their caches fit.

    On a CPU more than 16 gain little (docs/benchmarks.md).
    """
    on_gpu = this_machine().device != "cpu"
    affordable = _memory(model) * CACHE_SHARE
    for slots in (count for count in (64, 32, 16, 8, 4, 2) if on_gpu or count <= MOST_SLOTS):
        wide = settings.model_copy(update={"slots": slots})
        if cache_size(model, wide, slot_window(model, wide)) <= affordable:
            return slots
    return 1
