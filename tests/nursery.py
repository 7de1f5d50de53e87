"""Worker processes in a twentieth of their time: forked from one that has imported what each of them imports.

A worker's own start is nine tenths imports, and the suite starts hundreds. What is born here is a process like any
other: a child of the test's own process, with pipes, environment and folder of its own, whose end is its own. The
contract suite, and whatever is `real` or `hf`, starts its workers the ordinary way.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

WORKER: Final = (sys.executable, "-P", "-m", "rallychat.engines.worker")
IMPORTED: Final = (
    *("rallychat.engines.worker", "rallychat.engines.echo"),
    *("uvloop", "uvicorn.protocols.http.httptools_impl"),
)
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT: Final = 0x8000
"""A child of who is the caller's parent."""
POSSIBLE: Final = sys.platform == "linux" and platform.machine() in _CLONE


class Nursery:
    """The process that forks; begun when the first worker is wanted."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._ours: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def bear(self, environment: Mapping[str, str] | None, stdio: tuple[int, int, int]) -> int:
        """The process id of a new worker with these three files."""
        wanted = {"environment": dict(environment or os.environ), "folder": str(Path.cwd())}
        with self._turn:
            ours = self._ours or self._begin()
            socket.send_fds(ours, [json.dumps(wanted).encode()], [*stdio])
            answer = ours.recv(64)
        assert answer, "the nursery has ended"
        return int(answer)

    def close(self) -> None:
        """Ends it; what it bore goes on."""
        if self._ours is not None and self._process is not None:
            self._ours.close()
            self._process.wait()

    def _begin(self) -> socket.socket:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._ours


def popen(nursery: Nursery) -> type[subprocess.Popen[Any]]:
    """`subprocess.Popen`, but that workers come from a nursery."""

    class Popen(subprocess.Popen[Any]):
        def _execute_child(self, args: Any, *more: Any) -> None:
            if tuple(args) != WORKER:
                super()._execute_child(args, *more)  # type: ignore[misc]
                return
            environment, pipes = more[5], more[9:15]
            self.pid = nursery.bear(environment, (pipes[0], pipes[3], pipes[5]))
            self._child_created = True
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    return Popen


def _forked() -> int:
    """`os.fork`, but that the new process is a child of our parent."""
    python = ctypes.PyDLL(None)
    python.PyOS_BeforeFork()
    pid = int(python.syscall(_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if pid:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    return pid


def _worker(wanted: dict[str, Any], stdio: list[int]) -> None:
    """Become the worker that was wanted."""
    from rallychat.engines import worker

    os.setsid()
    os.chdir(wanted["folder"])
    for here, given in enumerate(stdio):
        os.dup2(given, here)
        os.close(given)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    worker.main()


def _nurse(theirs: socket.socket) -> None:
    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, stdio, *_ = socket.recv_fds(theirs, 1 << 20, 3)
        if not message:
            return
        if (pid := _forked()) == 0:
            theirs.close()
            _worker(json.loads(message), stdio)
            os._exit(1)  # it never returns
        theirs.send(str(pid).encode())
        for given in stdio:
            os.close(given)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _nurse(socket.socket(fileno=int(sys.argv[1])))
