"""Where a fetch works, and how it is the only one of its target, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from rallychat.catalog.types import Model
from rallychat.errors import Conflict, NoNetwork
from rallychat.settings import Settings

_POLL: Final = 0.2


def work_of(target: Path) -> Path:
    """The folder of everything unfinished for `target`, beside it."""
    return target.with_name(f".{target.name}.fetching")


@contextmanager
def alone(target: Path, settings: Settings, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the target's lock; `waiting` is called every moment while another process holds it."""
    lock = FileLock(_lock_file(target, settings), thread_local=False)
    while True:
        try:
            lock.acquire(timeout=_POLL)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_one(what: str, target: Path, settings: Settings) -> Iterator[None]:
    """Hold the target's lock, or not at all.

    Raises:
        Conflict: it is being fetched.
    """
    try:
        with FileLock(_lock_file(target, settings), timeout=0):
            yield
    except Timeout as exc:
        raise Conflict(f"{what} is being downloaded.", hint="cancel the download first") from exc


def prune(path: Path, models_dir: Path) -> None:
    """Remove folders above `path` that became empty, up to the models folder."""
    with suppress(OSError):
        for folder in path.parents:
            if folder == models_dir:
                break
            folder.rmdir()


def is_offline(model: Model) -> NoNetwork:
    """The error where something is missing and nothing may be fetched."""
    return NoNetwork(
        f"The weights of {model.name} are not on this machine, and RallyChat is set to stay offline.",
        hint="download them once without RALLYCHAT_OFFLINE",
    )


def _lock_file(target: Path, settings: Settings) -> Path:
    """One per target, apart from it and never deleted: deleting a lock lets two processes hold it."""
    folder = settings.models_dir / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "--".join((*target.relative_to(settings.models_dir).parts[:-1], f"{target.name}.lock"))
