"""Which models are loaded. Opens engines on demand, unloads the longest unused, frees everything at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rallychat.catalog import Model
from rallychat.catalog.engines import code_allowed
from rallychat.catalog.sizing import slot_window
from rallychat.engines.protocol import WorkerSpec
from rallychat.messages import Loading
from rallychat.pool.engine import Engine
from rallychat.settings import Settings
from rallychat.sources import Downloads, Progress, adapter_paths, is_here

log = logging.getLogger(__name__)

Tell = Callable[[Loading], None]
TURN = 30.0
"""Seconds that somebody waits for a model to come out of use, before those who ask for it wait behind them."""


def worker_spec(model: Model, path: str, settings: Settings) -> WorkerSpec:
    """What a worker is told to run; `path` is the weights file or the checkpoint's folder."""
    return WorkerSpec(
        engine=model.engine,
        model=model.engine_id,
        path=path,
        slots=settings.slots,
        window=slot_window(model, settings),
        threads=settings.threads,
        offload_mb=settings.kv_offload_mb,
        options=(_checkpoint_options(model, settings) | model.options) or None,
    )


def _checkpoint_options(model: Model, settings: Settings) -> dict[str, Any]:
    """What the transformers engine is told beside; what the model's own options say goes before it."""
    if model.engine != "transformers":
        return {}
    return {
        "adapters": {name: str(path) for name, path in adapter_paths(model, settings).items()},
        "dtype": settings.dtype,
        "quantize": settings.quantize,
        "multi_gpu": settings.multi_gpu,
        "remote_code": code_allowed(model, settings),
    }


class Pool:
    """The loaded engines.

    Args:
        settings: how many models stay loaded, and each engine's settings.
        downloads: fetches weights that are not here.
    """

    def __init__(self, settings: Settings, downloads: Downloads) -> None:
        self.loaded: Callable[[Engine], None] = lambda _: None
        """Called with an engine that can answer, its caches empty: at first, and after each restart."""
        self._settings = settings
        self._downloads = downloads
        self._engines: dict[str, Engine] = {}
        self._engine_ids: dict[str, str] = {}
        self._room = asyncio.Lock()
        self._ways: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Of those who wait for one model, the first alone waits for room."""
        self._leaving: Engine | None = None
        """It makes room as soon as it is out of use: nobody else may have it."""
        self.crowded = asyncio.Event()
        """Set while somebody waits for another model's engine to come out of use."""

    def find(self, model_id: str) -> Engine | None:
        """The engine of a model that is loaded or loading."""
        engine = self._engines.get(self._engine_ids.get(model_id, model_id))
        return None if engine is None or engine.state in ("stopped", "unavailable") else engine

    def engines(self) -> list[Engine]:
        """Every engine there is, whatever its state."""
        return list(self._engines.values())

    def error(self, model_id: str) -> str:
        """Why the model's engine could not be started, or empty."""
        engine = self._engines.get(self._engine_ids.get(model_id, model_id))
        return str(engine.error) if engine and engine.state == "unavailable" else ""

    def forget(self, *, session: str = "", user: str = "") -> None:
        """That conversation, or all of that user's, is deleted: no copy of a cache stays."""
        for engine in self._engines.values():
            engine.forget(session=session, user=user)

    async def open(self, model: Model, tell: Tell = lambda _: None) -> Engine:
        """The model's engine, ready. Fetches and loads what is missing; `tell` hears of both.

        Raises:
            SourceError: the weights could not be fetched.
            EngineUnavailable: the engine could not be started.
        """
        self._engine_ids[model.id] = model.engine_id
        engine = self._staying(model.id)
        if engine is None:
            engine = await self._start(model, tell)
        elif engine.state != "loaded":
            tell(Loading(model.id, "load"))
        async with engine.using():  # what is loaded for somebody is not unloaded for another
            await engine.ready()
        return engine

    async def _start(self, model: Model, tell: Tell) -> Engine:
        """The engine of a model that has none. Everybody who waits for its weights hears how they come."""
        if not is_here(model, self._settings):
            tell(Loading(model.id, "download", 0.0))
            async for progress in self._downloads.watch(model):
                tell(Loading(model.id, "download", _fraction(progress)))
        path = await self._downloads.ensure(model)
        tell(
            Loading(model.id, "load")
        )  # before there is room for it, which may take as long as others use theirs
        async with self._ways[model.engine_id]:
            return self._staying(model.id) or await self._start_in_turn(model, path)

    def _staying(self, model_id: str) -> Engine | None:
        """The model's engine, unless it is to make room for another."""
        engine = self.find(model_id)
        return None if engine is self._leaving else engine

    async def _start_in_turn(self, model: Model, path: Path) -> Engine:
        async with self._room:
            engine = self.find(model.id)
            if engine is None:
                await self._make_room(model.engine_id)
                spec = worker_spec(model, str(path), self._settings)
                engine = Engine(spec, self._settings, loaded=lambda it: self.loaded(it))
                self._engines[model.engine_id] = engine
        return engine

    async def _make_room(self, coming: str) -> None:
        """Unloads what was longest unused until one more fits; waits for engines in use.

        After `TURN`, who asks for the one that was loaded first waits until this one has come.
        """
        gone = self._engines.pop(coming, None)
        if gone is not None:
            await gone.stop()
        asked = time.monotonic()
        try:
            while True:
                loaded = [e for e in self._engines.values() if e.state in ("loading", "loaded")]
                if len(loaded) < self._settings.max_loaded:
                    return
                idle = [engine for engine in loaded if engine.idle]
                if idle:
                    await self._unload(min(idle, key=lambda engine: engine.used_at))
                    continue
                if self._leaving is None and time.monotonic() - asked >= TURN:
                    self._leaving = min(loaded, key=lambda engine: engine.began)
                self.crowded.set()
                await asyncio.sleep(0.05)
                self.crowded.clear()
        finally:
            self._leaving = None
            self.crowded.clear()

    async def unload(self, model_id: str) -> None:
        """Ends the model's engine; answers in progress are interrupted, also those of models that share it."""
        engine = self._engines.get(self._engine_ids.get(model_id, model_id))
        if engine is not None:
            await self._unload(engine)

    async def _unload(self, engine: Engine) -> None:
        self._engines.pop(engine.spec.model, None)
        await engine.stop()
        log.info("unloaded %s", engine.spec.model)

    async def aclose(self) -> None:
        """Ends every engine."""
        engines, self._engines = list(self._engines.values()), {}
        await asyncio.gather(*(engine.stop() for engine in engines))


def _fraction(progress: Progress) -> float | None:
    return progress.done / progress.total if progress.total else None
