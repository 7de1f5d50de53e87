"""Which live process writes which running answer: a locked file per process under `data_dir/run/`.

The operating system frees a dead process's lock, however it died. Whoever looks at locks does so under one
`store.lock`, so that nobody takes a process that is just starting for a dead one. Locks reach across the
processes of one machine and folder, its *place*; `processes.py` knows what to do about the others.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rallychat.errors import StoreError
from rallychat.store.ids import new_id


@contextmanager
def starting(folder: Path, *, timeout: float) -> Generator[None]:
    """Keeps other processes from starting or sweeping meanwhile."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with _lock(folder / "store.lock").acquire(timeout=timeout):
            yield
    except Timeout as exc:
        raise StoreError(
            f"Another RallyChat has been starting in {folder} for over {timeout:.0f} s.",
            hint="stop it and try again",
        ) from exc
    except OSError as exc:
        raise StoreError(
            f"The folder {folder} cannot be used: {exc.strerror}.",
            hint="check who owns it, or choose another with --data-dir",
        ) from exc


class Owner:
    """This process's claim on the answers it writes."""

    def __init__(self, folder: Path) -> None:
        self.id = new_id("owner")
        self.folder = folder
        self.place = ""
        """Where the locks are that tell whether it lives."""
        self._lock = _lock(self._file(self.id))

    def journal(self, owner: str) -> Path:
        """The file of what an owner's answers last said."""
        return self.folder / f"{owner}.journal"

    def take(self) -> None:
        """Takes this process's lock. Call under `starting`."""
        self._lock.acquire(timeout=0)

    def find_place(self) -> None:
        """Learns `place`. Call under `starting`."""
        mark = self.folder / "place"
        if not mark.exists():
            mark.write_text(new_id("place"), encoding="utf-8")
        self.place = f"{mark.read_text(encoding='utf-8')[:80]} {socket.gethostname()[:150]}"

    def release(self) -> None:
        """Frees the lock; answers still running count as interrupted from now on."""
        if self._lock.is_locked:
            _remove(self._file(self.id))
            self._lock.release()

    def is_live(self, owner: str) -> bool:
        """Whether the process behind `owner` still runs. Call under `starting`."""
        if owner == self.id:
            return True
        path = self._file(owner)
        if not path.exists():
            return False
        lock = _lock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        _remove(path)
        lock.release()
        return False

    def ended(self) -> dict[Path, str]:
        """The journals of dead processes and whose each is; tidies their locks up. Call under `starting`."""
        for path in self.folder.glob("owner_*.lock"):
            self.is_live(path.stem)
        journals = {path: path.name.partition(".")[0] for path in self.folder.glob("owner_*.journal")}
        return {path: owner for path, owner in journals.items() if not self.is_live(owner)}

    def _file(self, owner: str) -> Path:
        return self.folder / f"{owner}.lock"


def _remove(path: Path) -> None:
    """Tidies a lock file up; one that stays (Windows keeps open files) is found free and swept later."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)  # taken in one thread, released in another
