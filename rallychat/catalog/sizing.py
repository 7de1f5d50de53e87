"""How much memory a model takes, and how long a window it is therefore given."""

from __future__ import annotations

from rallychat.catalog.types import Model
from rallychat.settings import Settings

DEFAULT_WINDOW = 8192
"""Tokens per slot where the user says nothing and the model was trained for at least as many."""
SHORTEST_WINDOW = 2048
"""Tokens below which a window is not halved to save memory."""
CACHE_SHARE = 0.25
"""Share of this machine's memory that the slots' caches may take before the window is halved."""
OVERHEAD = 96 * 2**20
"""Bytes a worker takes beside weights and cache."""


def slot_window(model: Model, settings: Settings) -> int:
    """Tokens each slot holds: as the settings say, else what model and memory allow, at most `DEFAULT_WINDOW`."""
    if settings.window is not None:
        return min(settings.window, model.window)
    import psutil  # not needed by workers, which import this package too

    window = min(DEFAULT_WINDOW, model.window)
    affordable = psutil.virtual_memory().total * CACHE_SHARE
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
    if not model.size:
        return None
    return model.size + cache_size(model, settings, slot_window(model, settings)) + OVERHEAD
