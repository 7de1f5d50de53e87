"""What runs a model: on a CPU its GGUF file, on a GPU its checkpoint, unless it is said otherwise."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rallychat.catalog.precision import this_machine
from rallychat.catalog.types import EngineName, Model
from rallychat.settings import Settings

LIBRARIES: Final = ("torch", "transformers", "peft", "accelerate")
"""What the extra `hf` brings."""


def engine_for(model: Model, settings: Settings) -> EngineName:
    """The engine for a model here: what it has decides, then the settings, then its file, then the machine."""
    if model.engine == "echo" or model.weights is None or model.checkpoint is None:
        return model.engine
    if settings.engine != "auto":
        return settings.engine
    if "engine" in model.model_fields_set:
        return model.engine
    return "transformers" if gpu_is_usable() else "llamacpp"


def gpu_is_usable() -> bool:
    """There is a GPU, and a torch that can use it."""
    device = this_machine().device
    return device != "cpu" and not missing_libraries() and torch_has(device)


def code_allowed(model: Model, settings: Settings) -> bool:
    """A person has named this model, or its checkpoint, as one whose Python code may run."""
    allowed = {name.casefold() for name in settings.remote_code}
    names = [model.id, *model.hub_ids, *([model.checkpoint.where] if model.checkpoint else [])]
    return any(name.casefold() in allowed for name in names)


def missing_libraries() -> list[str]:
    """Which of the libraries that checkpoints need are not installed. Imports none of them."""
    return [name for name in LIBRARIES if find_spec(name) is None]


@lru_cache(maxsize=3)
def torch_has(device: str) -> bool:
    """The installed torch was built for this kind of device; read from its version file, as importing takes seconds."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return False
    if device != "cuda":
        return True
    try:
        said = Path(package.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^(?:cuda|hip)\b[^=]*=\s*['\"]", said, re.MULTILINE) is not None
