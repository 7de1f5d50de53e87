"""Downloads of a server: one per model, shared by all who wait or watch."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from rallychat import sources
from rallychat.errors import NoNetwork, SourceCancelled
from rallychat.settings import Settings
from rallychat.sources import Downloads, Progress, hub, is_here, weights_path
from tests.hub_server import CONTENT, HubServer, Repository, hub_in_place


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_in_place(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
async def downloads(settings: Settings) -> AsyncIterator[Downloads]:
    running = Downloads(settings)
    yield running
    await running.aclose()


async def half_sent(server: HubServer) -> None:
    assert await asyncio.to_thread(server.half_sent.wait, 60)


async def watched(downloads: Downloads, server: HubServer) -> list[Progress]:
    return [progress async for progress in downloads.watch(server.model())]


async def test_all_who_wait_and_watch_share_one_download(server: HubServer, downloads: Downloads) -> None:
    server.held = True
    waiting = asyncio.gather(
        downloads.ensure(server.model()),
        downloads.ensure(server.model()),
        watched(downloads, server),
        watched(downloads, server),
    )
    await half_sent(server)
    assert downloads.progress(server.model().id) is not None
    server.release()
    first, second, *seen = await waiting
    assert first == second
    assert first.read_bytes() == CONTENT
    assert len(server.ranges_asked) == 1
    assert all(progress for progress in seen)
    assert downloads.progress(server.model().id) is None


async def test_progress_grows_and_reaches_a_late_watcher(server: HubServer, downloads: Downloads) -> None:
    server.held = True
    first = asyncio.create_task(watched(downloads, server))
    await half_sent(server)
    async with aclosing(downloads.watch(server.model())) as late:
        async for progress in late:
            if progress.done:
                break
    assert progress.total == len(CONTENT)
    assert 0 < progress.done <= len(CONTENT) // 2
    server.release()
    done = [progress.done for progress in await first]
    assert done == sorted(done)


async def test_what_is_here_is_not_downloaded(
    server: HubServer, downloads: Downloads, settings: Settings
) -> None:
    await downloads.ensure(server.model())
    server.requests.clear()
    assert await downloads.ensure(server.model()) == weights_path(server.model(), settings)
    assert await watched(downloads, server) == []
    assert server.requests == []


async def test_whoever_stops_waiting_does_not_stop_the_download(
    server: HubServer, downloads: Downloads
) -> None:
    server.held = True
    impatient = asyncio.create_task(downloads.ensure(server.model()))
    patient = asyncio.create_task(downloads.ensure(server.model()))
    await half_sent(server)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    server.release()
    assert (await patient).read_bytes() == CONTENT
    assert len(server.ranges_asked) == 1


async def test_cancel_ends_it_for_all_and_it_can_begin_again(
    server: HubServer, downloads: Downloads, settings: Settings
) -> None:
    server.held = True
    waiting = [
        asyncio.create_task(downloads.ensure(server.model())),
        asyncio.create_task(watched(downloads, server)),
    ]
    await half_sent(server)
    cancelling = asyncio.create_task(downloads.cancel(server.model().id))
    await asyncio.sleep(0)
    server.release()  # the fetching thread looks up when bytes come, at the latest after its timeout
    await cancelling
    for task in waiting:
        with pytest.raises(SourceCancelled):
            await task
    assert not is_here(server.model(), settings)
    assert downloads.progress(server.model().id) is None
    assert (await downloads.ensure(server.model())).read_bytes() == CONTENT


async def test_a_failure_reaches_all_and_is_not_remembered(server: HubServer, downloads: Downloads) -> None:
    server.errors = [503] * 3
    results = await asyncio.gather(
        downloads.ensure(server.model()), watched(downloads, server), return_exceptions=True
    )
    assert [type(result) for result in results] == [NoNetwork, NoNetwork]
    assert (await downloads.ensure(server.model())).read_bytes() == CONTENT


async def test_a_failure_nobody_waits_for_is_quiet(server: HubServer, downloads: Downloads) -> None:
    loud: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
    server.errors = [503] * 3
    async with aclosing(downloads.watch(server.model())) as watching:
        await anext(watching)
    await asyncio.wait([downloads._running[server.model().id].path])
    await asyncio.sleep(0)
    gc.collect()
    assert downloads.progress(server.model().id) is None
    assert loud == []


async def test_a_connection_that_hangs_does_not_hold_up_cancelling(
    server: HubServer, downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 3600.0)
    monkeypatch.setattr(sources.downloads, "GRACE", 0.01)
    server.held = True
    waiting = asyncio.create_task(downloads.ensure(server.model()))
    await half_sent(server)
    await downloads.cancel(server.model().id)
    with pytest.raises(SourceCancelled):
        await waiting


async def test_closing_ends_what_is_running(server: HubServer, settings: Settings) -> None:
    downloads = Downloads(settings)
    server.repositories["owner/other"] = Repository({"tiny.gguf": CONTENT})
    server.held = True
    waiting = [
        asyncio.create_task(downloads.ensure(server.model())),
        asyncio.create_task(downloads.ensure(server.model("owner/other"))),
    ]
    await half_sent(server)
    closing = asyncio.create_task(downloads.aclose())
    await asyncio.sleep(0)
    server.release()
    await closing
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [SourceCancelled, SourceCancelled]
