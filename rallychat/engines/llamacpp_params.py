"""How llama.cpp is set up: every parameter whose default would surprise, and the options a model may set."""

from __future__ import annotations

import os
from typing import Any, Final, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import SettingsError


class LlamaCppOptions(BaseModel):
    """`options` of a llama.cpp model. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int | None = Field(None, ge=32, le=4096)
    """Tokens evaluated in one step while reading a prompt: the longest a cancel or another stream can wait.

    Not given: 128 on a CPU, where more is no faster (measured), else 512.
    """
    flash_attention: Literal["auto", "on", "off"] | None = None
    """Not given: off on a CPU, where it is the slower choice (measured), else llama.cpp's own choice."""
    cache_type: Literal["f16", "q8_0"] = "f16"
    gpu_layers: int = Field(-1, ge=-1)
    """Layers on the GPU; -1 is llama.cpp's own choice."""
    mlock: bool = False


def physical_cores() -> int:
    """CPU cores this process may use, without the second thread of each."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def common_params(spec: WorkerSpec, window: int) -> Any:
    """xllamacpp's `CommonParams` for `spec` with `window` tokens per slot. Every surprising default is said.

    Raises:
        SettingsError: an option is unknown or wrong.
    """
    import xllamacpp as x

    try:
        options = LlamaCppOptions.model_validate(spec.options or {})
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"Option '{name}' of the llama.cpp engine: {first['msg']}.") from exc
    params = x.CommonParams()
    params.model.path = spec.path
    params.n_parallel = spec.slots
    params.n_ctx = spec.slots * window
    params.kv_unified = False  # else slots share one cache and a warm one can be taken away
    params.cache_ram_mib = 0  # the host prompt cache: not keyed by adapter, and 8 GiB by default
    params.cache_idle_slots = False
    params.ctx_shift = False  # else text is dropped silently at the window's end
    params.fit_params = False  # else the window is shrunk to what fits
    on_gpu = any("GPU" in str(device.get("type", "")) for device in x.get_device_info())
    params.n_batch = params.n_ubatch = max(options.batch or (512 if on_gpu else 128), spec.slots)
    flash = _FLASH[options.flash_attention or ("auto" if on_gpu else "off")]
    params.flash_attn_type = getattr(x.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    cache_type = getattr(x.ggml_type, f"GGML_TYPE_{options.cache_type.upper()}")
    params.cache_type_k = params.cache_type_v = cache_type
    params.n_gpu_layers = options.gpu_layers
    threads = spec.threads or physical_cores()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = True
    params.verbosity = 1  # errors only: they are a failing worker's last words
    params.ui = False
    params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = False
    params.cors_origins, params.cors_credentials = "", False
    params.n_threads_http = 2
    params.port = 0
    return params


_FLASH: Final = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
