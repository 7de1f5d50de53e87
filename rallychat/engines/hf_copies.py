"""What slots of the Transformers engine held, as safetensors files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rallychat.engines.backend import Copied
from rallychat.engines.hf_decoder import Held, Runner
from rallychat.engines.hf_steps import Steps
from rallychat.errors import EngineRefused

_T = TypeVar("_T")


class Copies:
    """The files of one engine; `steps` makes and takes them between two of its steps."""

    def __init__(self, runner: Runner, steps: Steps, folder: Path) -> None:
        self._runner = runner
        self._steps = steps
        self._folder = folder
        self._held: dict[str, Held] = {}
        folder.mkdir(exist_ok=True)

    async def save(self, slot: int, name: str) -> Copied:
        """See `Backend`."""
        (held, states), read = await self._steps.between(lambda: _timed(lambda: self._runner.copied(slot)))
        path = self._folder / name
        try:
            _, written = await asyncio.to_thread(_timed, lambda: save_file(states, path))
            size = path.stat().st_size
        except (OSError, SafetensorError) as exc:
            self.discard(name)
            raise EngineRefused(f"What a slot holds cannot be written: {exc}.") from exc
        self._held[name] = held
        return Copied(size, read + written)

    async def restore(self, slot: int, name: str) -> float:
        """See `Backend`."""
        held = self._held[name]
        try:
            states, read = await asyncio.to_thread(_timed, lambda: load_file(self._folder / name))
        except (OSError, SafetensorError) as exc:
            await self._steps.between(lambda: self._runner.forget(slot))
            raise EngineRefused(f"What a slot held cannot be read: {exc}.") from exc
        _, written = await self._steps.between(lambda: _timed(lambda: self._runner.put(slot, held, states)))
        return read + written

    def discard(self, name: str) -> None:
        """See `Backend`."""
        self._held.pop(name, None)
        (self._folder / name).unlink(missing_ok=True)


def _timed(errand: Callable[[], _T]) -> tuple[_T, float]:
    """What it gives, and the milliseconds it took."""
    began = time.monotonic()
    return errand(), (time.monotonic() - began) * 1000
