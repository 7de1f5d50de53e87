"""The process an engine runs in: `python -m rallychat.engines.worker`. Answers `rallychat.engines.protocol`.

Its standard input brings one line of JSON (`Start`) and then stays open for as long as the worker may live: when the
server is gone, however it went, the worker goes too. Its standard output brings one line of JSON (`Ready`) back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson
import uvicorn
from pydantic import BaseModel, ConfigDict

from rallychat import garbage, logs
from rallychat.engines.backend import Backend
from rallychat.engines.protocol import WorkerSpec
from rallychat.engines.serving import Serving
from rallychat.errors import RallyChatError

LOST_PARENT: Final = 3
"""Exit status after standard input ended."""
FAILED: Final = 1
"""Exit status after the engine could not be opened."""
LONGEST: Final = 4000
"""Characters of what kept it from opening that are told: no line is read that is longer than 64 KiB."""


class Start(BaseModel):
    """What the server sends: the engine to run, and where to listen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: WorkerSpec
    folder: Path
    """A private folder for sockets."""
    socket: Path | None = None
    """Unix socket to listen on; None: a free port of the loopback interface."""
    key: str | None = None
    """What requests must carry as `Authorization: Bearer`, where a socket file cannot keep others out."""
    log_level: str = "warning"


class Ready(BaseModel):
    """What the worker answers: it is serving (`port` if on loopback), or why it cannot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int | None = None
    error: str | None = None
    hint: str = ""
    code: str = ""


def open_backend(spec: WorkerSpec, folder: Path) -> Backend:
    """Load the engine that `spec` names; blocks. Imports that engine only."""
    match spec.engine:
        case "llamacpp":
            from rallychat.engines.llamacpp import LlamaCpp

            return LlamaCpp(spec, folder=folder)
        case "transformers":
            from rallychat.engines.transformers import Transformers

            return Transformers(spec, folder=folder)
        case "echo":
            from rallychat.engines.echo import Echo

            return Echo(spec)


def main() -> None:
    """Serve until standard input ends or a signal comes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the server, which then ends its answers in order
    answers = _private_stdout()
    line = sys.stdin.buffer.readline()
    _die_with_parent()
    start = Start.model_validate_json(line)
    logs.configure(start.log_level, "json")
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    status = asyncio.run(_serve(start, answers))
    sys.stderr.flush()
    os._exit(status)  # threads of a native library may still hang


async def _serve(start: Start, answers: int) -> int:
    try:
        backend = open_backend(start.spec, start.folder)
    except RallyChatError as exc:
        _tell(answers, Ready(error=exc.message[:LONGEST], hint=exc.hint, code=exc.code))
        return FAILED
    listener = _listen(start)
    spec, free = start.spec, shutil.disk_usage(start.folder).free
    offload = min(spec.offload_mb * 1024 * 1024, free // 4)
    serving = Serving(backend, model=spec.model, slots=spec.slots, key=start.key, offload=offload)
    config = uvicorn.Config(
        serving,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    garbage.settle()
    _tell(answers, Ready(port=None if start.socket else listener.getsockname()[1]))
    await _Server(config).serve(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Leaves signals as they were: SIGTERM ends a worker at once, its clients see the connection close."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(start: Start) -> socket.socket:
    if start.socket is not None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Under its name it can be connected to from the first moment: one that refuses is known to be left over.
        listener.bind(f"{start.socket}.new")
    else:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    if start.socket is not None:
        Path(f"{start.socket}.new").rename(start.socket)
    listener.setblocking(False)  # noqa: FBT003
    return listener


def _private_stdout() -> int:
    """Keep standard output for `Ready`; what a native library prints goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _tell(answers: int, ready: Ready) -> None:
    os.write(answers, orjson.dumps(ready.model_dump()) + b"\n")
    os.close(answers)


def _die_with_parent() -> None:
    """End this process when standard input does.

    A thread sees it, but not while a library holds the interpreter lock to load weights. So, where the kernel can,
    it also signals the end itself: SIGIO, whose default is to end the process. It does not signal an end that was there
    before it was asked to.
    """
    if sys.platform == "linux":
        import fcntl
        import select

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        stdin = select.poll()
        stdin.register(0, 0)  # the end is told unasked
        if any(events & select.POLLHUP for _, events in stdin.poll(0)):
            os._exit(LOST_PARENT)
    threading.Thread(target=_watch_stdin, name="stdin", daemon=True).start()


def _watch_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(LOST_PARENT)


if __name__ == "__main__":
    main()
