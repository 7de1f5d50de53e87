"""Models come and go: one that is not loaded gets its turn, and no worker is left behind by who hangs up."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rallychat.chat import ChatService
from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import WorkerSpec
from rallychat.pool import Engine
from rallychat.settings import Settings
from tests.api_world import settings
from tests.responses_world import write_models
from tests.test_fair_service import answer, until


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


async def test_who_asks_for_a_model_gets_a_turn_though_the_one_in_its_place_is_never_out_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.pool.pool.TURN", 0.0)
    write_models(tmp_path)
    heard = asyncio.Event()
    async with ChatService.open(settings(tmp_path, max_loaded=1)) as service, asyncio.TaskGroup() as group:

        async def use(came: asyncio.Event) -> None:
            """Goes when the next one has come, or where nobody may come."""
            engine = await service.pool.open(service.resolve("slow"))
            async with engine.using():
                came.set()
                if not heard.is_set():
                    following = asyncio.Event()
                    group.create_task(use(following))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(following.wait(), 0.2)
                    await asyncio.sleep(0.01)

        group.create_task(use(first := asyncio.Event()))
        await first.wait()
        async with asyncio.timeout(60):
            said, _, _ = await answer(service, "d", "hello d", model="echo")
        heard.set()
    assert said == "hello d"


async def test_a_model_that_has_come_is_there_for_all_who_wait_for_it_whoever_came_between(
    tmp_path: Path,
) -> None:
    write_models(tmp_path)
    done = asyncio.Event()
    used: list[str] = []
    async with ChatService.open(settings(tmp_path, max_loaded=1)) as service:

        async def use(name: str) -> None:
            engine = await service.pool.open(service.resolve(name))
            async with engine.using():
                used.append(name)
                await done.wait()

        engine = await service.pool.open(service.resolve("slow"))
        async with engine.using():
            asked = [asyncio.create_task(use(name)) for name in ("echo", "thinking", "echo")]
            await until(service.pool.crowded.is_set)
        async with asyncio.timeout(60):
            await until(lambda: len(used) == 2)
        done.set()
        await asyncio.gather(*asked)
    assert used == ["echo", "echo", "thinking"]


async def test_a_worker_that_loads_for_long_and_then_dies_at_once_is_not_taken_for_a_healthy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be loaded again without a pause, for ever."""
    pauses: list[int] = []
    enough = asyncio.Event()

    class Pauses(tuple[float, ...]):
        def __getitem__(self, failures: Any) -> Any:
            pauses.append(failures)
            if len(pauses) == 3:
                enough.set()
            return 0.0

    def dies(engine: Engine) -> None:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)

    monkeypatch.setattr("rallychat.pool.engine.BACK_OFF", Pauses((0.0, 0.0, 0.0)))
    monkeypatch.setattr("rallychat.pool.engine.HEALTHY", 0.4)
    spec = WorkerSpec("echo", "echo", options={"load_ms": 500})
    engine = Engine(spec, Settings(data_dir=tmp_path), loaded=dies)
    try:
        await enough.wait()
        assert pauses == [0, 1, 2]
    finally:
        await engine.stop()
