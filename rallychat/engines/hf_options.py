"""What a Transformers model may be told, and the checks of its folder that need no torch."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import EngineUnavailable, SettingsError

_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TransformersOptions(BaseModel):
    """`options` of a Transformers model. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapters: dict[str, str] = Field(default_factory=dict)
    """Name and folder of each LoRA adapter. One is merged into the weights; several stay apart, and a request's
    `model` names the one it wants (any other name: none of them)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["auto", "none", "int8", "int4"] = "auto"
    multi_gpu: bool = False
    """Spread the layers over all GPUs."""
    remote_code: bool = False
    """Run the Python code that lies with the checkpoint."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    prefill: int | None = Field(None, ge=16, le=8192)
    """Prompt tokens evaluated in one step: the longest a cancel or another stream can wait. Not given: 128 on a
    CPU, else 1024."""
    graphs: bool = True
    """Capture CUDA graphs of the decoding step (NVIDIA GPUs only)."""


def options_of(spec: WorkerSpec) -> TransformersOptions:
    """The options of `spec`.

    Raises:
        SettingsError: one is unknown or wrong.
    """
    try:
        return TransformersOptions.model_validate(spec.options or {})
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"Option '{name}' of the transformers engine: {first['msg']}.") from exc


def require_libraries() -> None:
    """Raises EngineUnavailable, with the way to get them, if the libraries are not installed."""
    missing = [name for name in ("torch", "transformers", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise EngineUnavailable(
            f"Hugging Face checkpoints need {' and '.join(missing)}, which this installation lacks.",
            hint="./rally add hf, or: pip install 'rallychat[hf]'",
        )


def check_folder(folder: Path) -> dict[str, Any]:
    """A checkpoint's `config.json`.

    Raises:
        SettingsError: no checkpoint is there.
        EngineUnavailable: its weights are pickles, which can run code when they are loaded.
    """
    config = _json(folder / "config.json", f"{folder} holds no checkpoint")
    _check_weights(folder)
    return config


def check_adapter(name: str, folder: Path) -> dict[str, Any]:
    """An adapter's `adapter_config.json`. Raises as `check_folder` does."""
    config = _json(folder / "adapter_config.json", f"{folder} holds no adapter '{name}'")
    _check_weights(folder)
    return config


def _json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise SettingsError(f"{otherwise}: there is no {path.name}.") from exc
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}.") from exc
    if not isinstance(found, dict):
        raise SettingsError(f"{path} is not a JSON object.")
    return found


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise EngineUnavailable(
            f"The weights in {folder} are pickles ({pickles[0]}), which can run code when they are loaded.",
            hint="take a copy of the model in the safetensors format",
        )
    raise SettingsError(f"{folder} holds no *.safetensors file.")
