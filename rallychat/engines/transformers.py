"""Hugging Face checkpoints inside a worker, through Transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rallychat.engines.hf_options import check_folder, options_of, require_libraries
from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import EngineUnavailable

if TYPE_CHECKING:
    from rallychat.engines.backend import Backend


def Transformers(spec: WorkerSpec) -> Backend:  # noqa: N802
    """Open a checkpoint."""
    options_of(spec)
    require_libraries()
    check_folder(Path(spec.path))
    raise EngineUnavailable("The Transformers engine is being built.")
