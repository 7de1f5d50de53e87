"""Downloads of one server: each model is fetched once, for all who wait for it or watch it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from rallychat.catalog.types import Model
from rallychat.errors import RallyChatError
from rallychat.settings import Settings
from rallychat.sources.fetching import fetch, is_here, weights_path
from rallychat.sources.progress import Progress

logger = logging.getLogger(__name__)

AT_ONCE = 4
"""Downloads that run at the same time; further ones wait."""


class _Download:
    """One fetch in a thread, and whoever watches it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.progress = Progress(0, None, "download")
        self.called_off = threading.Event()
        self.task: asyncio.Task[Path]
        self._changed = asyncio.Event()
        self._loop = loop
        self._newest = self.progress
        self._told = False

    def report(self, progress: Progress) -> None:
        """Called in the fetching thread, as often as it likes: the loop is told of the newest only."""
        self._newest = progress
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._show)

    async def change(self) -> None:
        """Returns at the next news, or when the download has ended."""
        await self._changed.wait()

    def wake(self) -> None:
        # a fresh event per piece of news wakes every watcher exactly once, without counting them
        self._changed.set()
        self._changed = asyncio.Event()

    def _show(self) -> None:
        self._told = False
        self.progress = self._newest
        self.wake()


class Downloads:
    """Use within one event loop; `aclose` ends what is running."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[str, _Download] = {}
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        self._closed = False

    def progress(self, model_id: str) -> Progress | None:
        """How far the download is, or None if none is running."""
        download = self._running.get(model_id)
        return download.progress if download else None

    async def ensure(self, model: Model) -> Path:
        """The path of the weights, once they are here; starts or joins the download.

        Whoever stops waiting does not stop the download.

        Raises:
            SourceError: it failed or was cancelled.
        """
        if model.id not in self._running and is_here(model, self._settings):
            return weights_path(model, self._settings)
        return await asyncio.shield(self._join(model).task)

    async def watch(self, model: Model) -> AsyncIterator[Progress]:
        """Progress until the weights are here; starts or joins the download.

        A slow watcher misses steps, never the end.

        Raises:
            SourceError: it failed or was cancelled.
        """
        if model.id not in self._running and is_here(model, self._settings):
            return
        download = self._join(model)
        while not download.task.done():
            yield download.progress
            if not download.task.done():
                await download.change()
        await asyncio.shield(download.task)

    async def cancel(self, model_id: str) -> None:
        """Stop a download, and return when it has stopped. What a hub sent is kept for a later try."""
        download = self._running.get(model_id)
        if download is not None:
            download.called_off.set()
            await asyncio.wait([download.task])

    async def aclose(self) -> None:
        """Cancel every download and wait for its thread."""
        self._closed = True
        for model_id in list(self._running):
            await self.cancel(model_id)
        self._threads.shutdown(wait=False)

    def _join(self, model: Model) -> _Download:
        if self._closed:
            raise RuntimeError("these Downloads are closed")
        if model.id not in self._running:
            loop = asyncio.get_running_loop()
            download = self._running[model.id] = _Download(loop)
            download.task = loop.create_task(self._run(model, download), name=f"download {model.id}")
            download.task.add_done_callback(partial(self._ended, model.id, download))
        return self._running[model.id]

    async def _run(self, model: Model, download: _Download) -> Path:
        work = partial(
            fetch, model, self._settings, on_progress=download.report, cancelled=download.called_off.is_set
        )
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _ended(self, model_id: str, download: _Download, task: asyncio.Task[Path]) -> None:
        del self._running[model_id]
        download.wake()
        with suppress(asyncio.CancelledError):
            error = task.exception()  # retrieved: nobody need be waiting
            if error is not None and not isinstance(error, RallyChatError):
                logger.error("the download of %s failed", model_id, exc_info=error)
