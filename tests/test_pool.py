"""Models come and go: one that is not loaded gets its turn, and no worker is left behind by who hangs up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import WorkerSpec
from rallychat.pool import Engine
from rallychat.settings import Settings


class Gate:
    """Workers are ended when it opens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.reached, self.opens = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.ended: list[WorkerProcess] = []
        listen, stop = WorkerProcess._listen, WorkerProcess.stop

        async def listening(process: WorkerProcess, worker: asyncio.subprocess.Process) -> None:
            self.begun.set()
            await listen(process, worker)

        async def stopping(process: WorkerProcess) -> None:
            self.reached.set()
            await self.opens.wait()
            await stop(process)
            self.ended.append(process)

        monkeypatch.setattr(WorkerProcess, "_listen", listening)
        monkeypatch.setattr(WorkerProcess, "stop", stopping)


@pytest.mark.parametrize("loading", [False, True])
async def test_an_engine_that_is_stopped_is_gone_though_who_asked_for_that_hangs_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: bool
) -> None:
    gate = Gate(monkeypatch)
    spec = WorkerSpec("echo", "echo", options={"load_ms": 60_000} if loading else None)
    engine = Engine(spec, Settings(data_dir=tmp_path))
    await (gate.begun.wait() if loading else engine.ready())
    stopping = asyncio.create_task(engine.stop())
    await gate.reached.wait()
    for _ in range(2):
        stopping.cancel()
        await asyncio.sleep(0)
    gate.opens.set()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    (process,) = gate.ended
    assert not psutil.pid_exists(process.pid)
    assert engine.state == "stopped"
