"""What goes wrong on purpose. Each fault is there for a while, and is over when its function returns."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from rallychat.bench.client import Talker
from rallychat.bench.server import ServerProcess
from rallychat.errors import EngineUnavailable

WHILE = (0.3, 2.5)
"""Seconds that a fault lasts, at random in between."""


class Database:
    """A PostgreSQL of its own, stopped and started. Its programs are looked for where Debian puts them, too."""

    def __init__(self) -> None:
        self._ctl, self._initdb = (_program(name) for name in ("pg_ctl", "initdb"))
        self._user = "postgres" if os.name == "posix" and os.getuid() == 0 else None  # it refuses to be root
        self._folder = Path(tempfile.mkdtemp(prefix="rallychat-pg-", dir="/tmp"))
        self._beginning, self._over = threading.Lock(), False

    def begin(self) -> None:
        """Makes it and starts it, unless it was closed before."""
        with self._beginning:
            if self._over:
                return
            if self._user:
                shutil.chown(self._folder, self._user)
            how = ["-U", "rallychat", "--auth=trust", "--encoding=UTF8"]
            self._do(self._initdb, "-D", str(self._data), *how)
            self.start()

    @property
    def url(self) -> str:
        """What RallyChat is told."""
        return f"postgresql://rallychat@/postgres?host={self._folder}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        """Starts it; returns when it answers."""
        options = f"-k {self._folder} -c listen_addresses='' -c max_connections=100"
        log = self._folder / "log"
        self._do(self._ctl, "-D", str(self._data), "-l", str(log), "-w", "-o", options, "start")

    def stop(self) -> None:
        """Ends it as it stands: what was not committed is lost, connections break."""
        self._do(self._ctl, "-D", str(self._data), "-m", "immediate", "stop")

    def close(self) -> None:
        """Ends it and removes its data; what is just beginning is waited for, which no cancel ends."""
        with self._beginning:
            self._over = True
            with suppress(subprocess.CalledProcessError):
                self.stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _do(self, *command: str) -> None:
        subprocess.run(
            command,
            check=True,
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _program(name: str) -> str:
    places = os.pathsep.join(
        [os.environ.get("PATH", ""), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    )
    found = shutil.which(name, path=places)
    if found is None:
        raise EngineUnavailable(
            f"There is no {name} here.", hint="install PostgreSQL, or leave --postgres out"
        )
    return found


Fault = Callable[[], Awaitable[bool]]
"""Returns whether there was what it breaks."""


class Faults:
    """What can go wrong.

    Args:
        server: whom it happens to.
        people: whose connections are cut.
        database: stopped now and then, where there is one.
        rng: how long each fault lasts, and whom it hits.
    """

    def __init__(
        self,
        server: ServerProcess,
        people: Sequence[Talker],
        database: Database | None,
        rng: random.Random,
    ) -> None:
        self.server = server
        self._people = people
        self._database = database
        self._rng = rng

    @property
    def all(self) -> Mapping[str, Fault]:
        """Each fault by its name."""
        found: dict[str, Fault] = {
            "kill the worker": self._kill_worker,
            "kill the server": self._kill_server,
            "restart the server": self._restart_server,
            "cut clients": self._cut,
            "stop the clock": self._freeze,
            "stop the worker's clock": self._freeze_worker,
        }
        if sys.platform == "linux":
            found["fill the disk"] = self._fill_disk
        if self._database is not None:
            found["stop PostgreSQL"] = self._stop_database
        return found

    async def _kill_worker(self) -> bool:
        workers = self.server.workers()
        for worker in workers:
            with suppress(psutil.Error):
                worker.kill()
        return bool(workers)

    async def _kill_server(self) -> bool:
        await self.server.kill()
        await self._last()
        await self.server.start()
        return True

    async def _restart_server(self) -> bool:
        await self.server.stop()
        await self.server.start()
        return True

    async def _cut(self) -> bool:
        for person in self._people:
            if self._rng.random() < 0.7:
                person.cut()
        return True

    async def _freeze(self) -> bool:
        self.server.freeze()
        await self._last()
        self.server.thaw()
        return True

    async def _freeze_worker(self) -> bool:
        workers = [each.pid for each in self.server.workers()]
        if not workers:
            return False
        self.server.freeze(what=workers)
        await self._last()
        self.server.thaw()
        return True

    async def _fill_disk(self) -> bool:
        """No file of the server's can take a byte: what a full disk does, without filling this machine's."""
        server = psutil.Process(self.server.pid)
        before = server.rlimit(psutil.RLIMIT_FSIZE)
        server.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
        await self._last()
        with suppress(psutil.Error):
            server.rlimit(psutil.RLIMIT_FSIZE, before)
        return True

    async def _stop_database(self) -> bool:
        assert self._database is not None
        await asyncio.to_thread(self._database.stop)
        await self._last()
        await asyncio.to_thread(self._database.start)
        return True

    async def _last(self) -> None:
        await asyncio.sleep(self._rng.uniform(*WHILE))
