"""The server a measurement starts: what it does of itself is noticed, and its end is not waited for without end."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from rallychat.bench import server as servers
from rallychat.bench.faults import Faults
from rallychat.bench.server import ServerProcess
from rallychat.settings import Settings

DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
)


async def playing(tmp_path: Path, program: str) -> tuple[ServerProcess, asyncio.subprocess.Process]:
    """A server whose process runs this in place of RallyChat."""
    found = ServerProcess(Settings(data_dir=tmp_path), "echo")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", program, stdout=asyncio.subprocess.PIPE
    )
    found._process = process
    return found, process


async def test_a_server_that_does_not_end_is_killed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "ENDS_WITHIN", 0.05)
    server, process = await playing(tmp_path, DEAF)
    assert process.stdout is not None
    await process.stdout.readline()
    assert await server.stop() < 0
    assert await server.stop() == 0, "it is ended once"
    assert (server.died, server.unclean) == (0, 1)


async def test_a_server_that_ends_by_itself_is_counted_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ServerProcess] = []

    async def start(self: ServerProcess) -> None:
        started.append(self)

    monkeypatch.setattr(ServerProcess, "start", start)
    server, process = await playing(tmp_path, "raise SystemExit(3)")
    await process.wait()
    await server.revive()
    assert (started, server.died, server.unclean) == ([server], 1, 0)


@pytest.mark.parametrize("name", ["kill the worker", "stop the worker's clock"])
async def test_what_happens_to_a_worker_that_there_is_not_is_no_fault(tmp_path: Path, name: str) -> None:
    server, process = await playing(tmp_path, "__import__('time').sleep(600)")
    try:
        assert not await Faults(server, [], None, random.Random(1)).all[name]()
    finally:
        process.kill()
        await process.wait()
