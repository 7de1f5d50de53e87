"""Downloads of one server: each model is fetched once, for all who wait for it or watch it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

from rallychat.catalog.types import Model
from rallychat.errors import RallyChatError, SourceCancelled
from rallychat.settings import Settings
from rallychat.sources.fetching import fetch, is_here, weights_path
from rallychat.sources.progress import Progress

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds a cancelled fetch is waited for; one that hangs in a dead connection is left to its timeout."""


class _Download:
    """One fetch in a thread of its own, and whoever watches it."""

    def __init__(self, model: Model, settings: Settings, *, force: bool) -> None:
        self.progress = Progress(0, None, "download")
        self._loop = asyncio.get_running_loop()
        self.path: asyncio.Future[Path] = self._loop.create_future()
        self.called_off = threading.Event()
        self._changed = asyncio.Event()
        self._newest = self.progress
        self._told = False
        # a daemon: what is half done may be left at any moment, so it need not hold up the end of the process
        self._thread = threading.Thread(
            target=self._fetch, args=(model, settings, force), daemon=True, name=f"download {model.id}"
        )

    def start(self) -> None:
        self._thread.start()

    async def change(self) -> None:
        """Returns at the next news, or when the download has ended."""
        await self._changed.wait()

    def wake(self) -> None:
        # a fresh event per piece of news wakes every watcher exactly once, without counting them
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self, outcome: Path | BaseException) -> None:
        if self.path.done():  # cancelled, and not waited for
            return
        if isinstance(outcome, Path):
            self.path.set_result(outcome)
        else:
            self.path.set_exception(outcome)

    def _fetch(self, model: Model, settings: Settings, force: bool) -> None:
        outcome: Path | BaseException
        try:
            outcome = fetch(
                model, settings, on_progress=self._report, cancelled=self.called_off.is_set, force=force
            )
        except BaseException as exc:  # whatever it is, whoever waits must hear of it
            outcome = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.end, outcome)

    def _report(self, progress: Progress) -> None:
        """Called in the fetching thread, as often as it likes: the loop is told of the newest only."""
        self._newest = progress
        if not self._told:
            self._told = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        self._told = False
        self.progress = self._newest
        self.wake()


class Downloads:
    """Use within one event loop; `aclose` ends what is running."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[str, _Download] = {}
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
        if self._nothing_to_do(model):
            return weights_path(model, self._settings)
        return await asyncio.shield(self._join(model).path)

    async def watch(self, model: Model, *, force: bool = False) -> AsyncGenerator[Progress]:
        """Progress until the weights are here; starts or joins the download. `force`: even if they are here.

        A slow watcher misses steps, never the end.

        Raises:
            SourceError: it failed or was cancelled.
        """
        if self._nothing_to_do(model) and not force:
            return
        download = self._join(model, force=force)
        while not download.path.done():
            yield download.progress
            if not download.path.done():
                await download.change()
        await asyncio.shield(download.path)

    async def cancel(self, model_id: str) -> None:
        """Stop a download, and return when it has stopped. What a hub sent is kept for a later try."""
        download = self._running.get(model_id)
        if download is not None:
            download.called_off.set()
            await asyncio.wait([download.path], timeout=GRACE)
            download.end(SourceCancelled("The download was cancelled."))

    async def aclose(self) -> None:
        """Cancel every download."""
        self._closed = True
        await asyncio.gather(*(self.cancel(model_id) for model_id in self._running))

    def _nothing_to_do(self, model: Model) -> bool:
        return model.id not in self._running and is_here(model, self._settings)

    def _join(self, model: Model, *, force: bool = False) -> _Download:
        if self._closed:
            raise RuntimeError("these Downloads are closed")
        if model.id not in self._running:
            download = self._running[model.id] = _Download(model, self._settings, force=force)

            def ended(path: asyncio.Future[Path]) -> None:
                del self._running[model.id]
                download.wake()
                error = path.exception()  # retrieved: nobody need be waiting
                if error is not None and not isinstance(error, RallyChatError):
                    logger.error("the download of %s failed", model.id, exc_info=error)

            download.path.add_done_callback(ended)
            download.start()
        return self._running[model.id]
