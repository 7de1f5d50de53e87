"""Starts and ends worker processes. Knows processes and pipes; what is said over the socket is the client's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import site
import socket
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Final

import orjson
from pydantic import ValidationError

from rallychat import logs
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import EngineInfo, WorkerSpec
from rallychat.engines.worker import Ready, Start
from rallychat.errors import EngineUnavailable, RallyChatError, SettingsError

log = logging.getLogger(__name__)

_GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL."""
_UNIX: Final = hasattr(socket, "AF_UNIX") and sys.platform != "win32"
_PREFIX: Final = "rallychat-"
_SOCKET: Final = "worker.sock"
_KEPT_LINES: Final = 16
_LOG_PREFIX: Final = re.compile(r"^[\d.]+ [EWI] +")
_TELLING: Final = re.compile(r"error|fail|fatal|abort|assert|cannot|could not", re.IGNORECASE)


class WorkerProcess:
    """One worker: started once, watched, stopped. `client` and `info` are there after `start`."""

    client: EngineClient
    info: EngineInfo

    def __init__(self, spec: WorkerSpec, *, load_timeout: float, stall_timeout: float) -> None:
        self.spec = spec
        self._load_timeout = load_timeout
        self._stall_timeout = stall_timeout
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The worker's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def last_words(self) -> str:
        """What the worker wrote to standard error last: the first line of it that tells of a failure, if any does."""
        lines = [_LOG_PREFIX.sub("", line).strip() for line in self._said if line.strip()]
        telling = [line for line in lines if _TELLING.search(line)]
        return telling[0] if telling else "; ".join(lines[-2:])

    async def start(self) -> None:
        """Start the worker; returns when its engine is loaded and answers.

        Raises:
            EngineUnavailable: it ended, said why it cannot, or took too long. Nothing is left running.
            SettingsError: its options or its weights file are wrong.
        """
        try:
            if _UNIX:
                _sweep()
            # Not under the data folder: a socket's path must be shorter than 108 bytes.
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            async with asyncio.timeout(self._load_timeout):
                await self._start(self._folder)
        except TimeoutError as exc:
            await self.stop()
            message = f"The engine of '{self.spec.model}' was not ready after {self._load_timeout:g} seconds."
            raise EngineUnavailable(message, hint="raise load_timeout, or choose a smaller model") from exc
        except Exception as exc:  # no memory, file or process to be had, or nothing that can be told or read
            await self.stop()
            if isinstance(exc, RallyChatError):
                raise
            message = f"The engine of '{self.spec.model}' could not be started: {exc}."
            raise EngineUnavailable(message, hint="ask again later") from exc
        except BaseException:
            await self.stop()
            raise

    async def _start(self, folder: Path) -> None:
        start = Start(
            spec=self.spec,
            folder=folder,
            socket=folder / _SOCKET if _UNIX else None,
            key=None if _UNIX else secrets.token_urlsafe(32),
            log_level=logging.getLevelName(log.getEffectiveLevel()).lower(),
        )
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "rallychat.engines.worker"),
            env=_environment(),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # a terminal's Ctrl-C is for the server alone
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it died already: what it said comes next
            self._process.stdin.write(orjson.dumps(start.model_dump(mode="json")) + b"\n")
            await self._process.stdin.drain()
        ready = await self._ready(await self._process.stdout.readline())
        self.client = EngineClient(
            socket=start.socket,
            base_url=None if _UNIX else f"http://127.0.0.1:{ready.port}",
            key=start.key,
            stall_timeout=self._stall_timeout,
        )
        self.info = await self.client.info()

    async def _ready(self, line: bytes) -> Ready:
        """The worker's answer. Raises what kept it from being ready."""
        name = self.spec.model
        try:
            ready = Ready.model_validate_json(line)
        except ValidationError as exc:
            status = await self.exited()
            words = f": {self.last_words}" if self.last_words else ""
            raise EngineUnavailable(f"The engine of '{name}' {_ending(status)} while loading{words}") from exc
        if ready.error is None:
            return ready
        await self.exited()
        if ready.code == SettingsError.code:
            raise SettingsError(ready.error, hint=ready.hint)
        words = f" It said: {self.last_words}" if self.last_words else ""
        raise EngineUnavailable(f"{ready.error}{words}", hint=ready.hint)

    async def exited(self) -> int:
        """Waits for the process to end. Its exit status; negative: the signal that ended it."""
        assert self._process is not None, "not started"
        status = await self._process.wait()
        if self._listening is not None:
            await asyncio.wait({self._listening}, timeout=1)
        return status

    async def stop(self) -> None:
        """End the worker: SIGTERM, SIGKILL if it does not heed. Its answers end as interrupted."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._listening is not None:
            await asyncio.wait({self._listening}, timeout=1)
            self._listening.cancel()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines of standard error; reading it all, so that the worker never waits for us."""
        assert process.stderr is not None
        rest = b""
        while piece := await process.stderr.read(65536):
            *lines, rest = (rest + piece).split(b"\n")
            self._said.extend(line.decode(errors="replace") for line in lines if not logs.relay(line))
            rest = rest[-4096:]
        if rest:
            self._said.append(rest.decode(errors="replace"))


def _environment() -> dict[str, str]:
    """Ours, and the way to this very package if it is not installed. (-P leaves out the current folder.)"""
    root = str(Path(__file__).parents[2])
    known = {*site.getsitepackages(), site.getusersitepackages()}
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    added = [] if root in known or root in paths else [root]
    return dict(os.environ) | ({"PYTHONPATH": os.pathsep.join([*added, *paths])} if added else {})


def _sweep() -> None:
    """Remove the folders of workers whose server was killed before it could."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_SOCKET}"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(left))
            except ConnectionRefusedError:  # nobody listens there any more
                shutil.rmtree(left.parent, ignore_errors=True)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = {-6: "aborted", -9: "was killed", -11: "crashed", -15: "was stopped"}.get(status)
    return name or f"was ended by signal {-status}"
