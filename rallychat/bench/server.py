"""A RallyChat server in processes of its own, for measurements: started, killed, stopped, frozen, started again."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import httpx
import psutil

from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings

POLL = 0.05
"""Seconds between two looks at a server that is starting."""
ENDS_WITHIN = 120.0
"""Seconds a server has to end in."""
_WORKER = "rallychat.engines.worker"
_TOLD = {
    "family", "engine", "dtype", "quantize", "multi_gpu", "remote_code", "slots", "window", "kv_offload_mb", "threads",
    "max_queue", "load_timeout", "stall_timeout", "gen_config_path", "gen_config_summarization_path", "strategy",
    "latency_factor", "retrieval", "summary_prompt", "offline",
}  # fmt: skip
"""Settings of engines and prompts: what of a person's settings such a server has, too."""
_KEPT = ("RALLYCHAT_DEBUG", "RALLYCHAT_HUB_TOKEN")


def _on_linux() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc, set_death_signal = ctypes.CDLL(None), 1
    return lambda: libc.prctl(set_death_signal, signal.SIGKILL)


dies_with_us = _on_linux()
"""For `preexec_fn`: the process is killed when this one dies, however it does, and even where it is frozen."""


class ServerProcess:
    """One server at one address, however often it is started.

    It listens to this machine only, asks nobody to log in, and reads no configuration file: what the person who
    measures has set of the engine and of prompts it is told, and nothing of databases and accounts.

    Args:
        settings: with a data folder of its own.
        model: what it answers with.
        page: with the page, not the API alone.
        arguments: more of `rallychat serve`.
        environment: settings beside.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        page: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said: deque[str] = deque(maxlen=200)
        """The last lines of its log."""
        self.died = 0
        """Times it was found to have ended by itself."""
        self.unclean = 0
        """Times it did not end in order when it was told to."""
        flags = ["--no-browser", "--host", "127.0.0.1", "--port", str(self.port), "--no-auth"]
        flags += ["--data-dir", str(settings.data_dir)]
        flags += [] if page else ["--api-only"]
        self._command = [sys.executable, "-m", "rallychat", "serve", model, *flags, *arguments]
        config = settings.data_dir / "bench.toml"
        config.touch()
        self._environment = _told(settings) | {"RALLYCHAT_CONFIG": str(config)} | dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None
        self._ended = False
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def workers(self) -> list[psutil.Process]:
        """The engines' processes."""
        try:
            below = psutil.Process(self.pid).children(recursive=True)
            return [each for each in below if _WORKER in each.cmdline()]
        except psutil.Error:
            return []

    async def start(self, *, patience: float = 120) -> None:
        """Start it; returns when it is ready.

        Raises:
            EngineUnavailable: it ended, or is not ready in time.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the measurement, which then ends the server
            preexec_fn=dies_with_us,
        )
        self._ended = False
        self._listening = asyncio.create_task(self._listen(self._process))
        try:
            async with asyncio.timeout(patience), httpx.AsyncClient(trust_env=False) as http:
                while not await self._ready(http):
                    if self._process.returncode is not None:
                        raise EngineUnavailable(f"The server ended while starting: {self.last_words}")
                    await asyncio.sleep(POLL)
        except TimeoutError as exc:
            raise EngineUnavailable(f"The server was not ready in {patience:g} s: {self.last_words}") from exc

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return " / ".join(list(self.said)[-3:])

    async def _ready(self, http: httpx.AsyncClient) -> bool:
        with suppress(httpx.HTTPError):
            return (await http.get(f"{self.url}/readyz", timeout=5)).status_code == HTTPStatus.OK
        return False

    async def kill(self) -> None:
        """End it as a power cut would; its workers notice."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """End it in order, or kill it where that takes too long; its exit code."""
        return await self._end(signal.SIGTERM)

    async def revive(self) -> None:
        """Start it again if it has ended by itself."""
        if self._process is not None and self._process.returncode is not None:
            await self._end(signal.SIGKILL)
            await self.start()

    def freeze(self, *, what: Sequence[int] | None = None) -> None:
        """Stop its clock, and that of its workers, until `thaw`."""
        self._tell(signal.SIGSTOP, what)

    def thaw(self) -> None:
        """Let it go on."""
        self._tell(signal.SIGCONT, None)

    def _tell(self, number: signal.Signals, what: Sequence[int] | None) -> None:
        for pid in what or (self.pid, *(each.pid for each in self.workers())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        if process is None or self._ended:
            return 0
        self._ended = True
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            code = await _waited_for(process)
            self.unclean += number == signal.SIGTERM and code != 0
        else:
            code = process.returncode
            self.died += 1
        if self._listening is not None:
            await asyncio.wait({self._listening}, timeout=2)
            self._listening.cancel()
        return code

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self.said.append(line.decode(errors="replace").rstrip())


async def _waited_for(process: asyncio.subprocess.Process) -> int:
    """Its exit code; one that does not end is killed."""
    with suppress(TimeoutError):
        return await asyncio.wait_for(process.wait(), ENDS_WITHIN)
    with suppress(ProcessLookupError):
        process.kill()
    return await process.wait()


def _told(settings: Settings) -> dict[str, str]:
    """Its environment: that of this process, and of RallyChat's settings those of `_TOLD`."""
    given = settings.model_dump(mode="json", include=_TOLD, exclude_unset=True, exclude_none=True)
    told = {
        f"RALLYCHAT_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RALLYCHAT_") or name in _KEPT
    }
    return kept | told


@asynccontextmanager
async def running(server: ServerProcess) -> AsyncGenerator[ServerProcess]:
    """The server, started; ended in order with the block, whatever became of it."""
    try:
        await server.start()
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.thaw()
        await asyncio.shield(server.stop())


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
