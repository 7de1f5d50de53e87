"""Fetches checkpoints and adapters: whole repositories, each of which appears in one step. Blocking.

A repository's files come one after another into a folder beside the target; those that are
whole stay there for a later try.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rallychat.catalog.places import folder
from rallychat.catalog.repository import MANIFEST, Said, as_safetensors, pickled
from rallychat.catalog.types import Adapter, Checkpoint, Model
from rallychat.errors import SourceMissing
from rallychat.settings import Settings
from rallychat.sources import hub
from rallychat.sources.examining import Order, check_width, examine
from rallychat.sources.files import disk_errors, folder_size, need_room
from rallychat.sources.pickled import converted, write_index
from rallychat.sources.places import alone, is_offline, only_one, prune, work_of
from rallychat.sources.progress import Cancelled, Delivery, FileProgress, OnProgress, Progress

_PARTS: Final = "parts"
_WHOLE: Final = "whole"


def fetch(
    model: Model, settings: Settings, *, on_progress: OnProgress, cancelled: Cancelled, force: bool
) -> Path:
    """Bring the adapters, then the base, unless they are here; return the base's folder.

    Raises:
        SourceError: something could not be fetched, or could not be used.
    """
    base = _base(model)
    missing = [part for part in model.parts if part.repo and (force or not part_is_here(part, settings))]
    if missing and settings.offline:
        raise is_offline(model)
    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    with disk_errors(model.name, settings.models_dir):
        orders = {part.where: examine(model, part, settings, token) for part in missing}
        ledger = _Ledger(tuple(orders.values()), on_progress)
        need_room(model.name, settings.models_dir, ledger.total - _arrived(missing, settings))
        said = (
            Said(orders[base.where].repository.read)
            if base.where in orders
            else Said.of(_place(base, settings))
        )
        for part in model.parts:
            if part is base:
                _check_adapters(model, said, settings)
            if part.where in orders:
                delivery = Delivery(
                    model.name,
                    _place(part, settings),
                    work_of(_place(part, settings)),
                    ledger.report,
                    cancelled,
                )
                _receive_alone(orders[part.where], ledger, delivery, settings, force=force)
            elif not _place(part, settings).is_dir():
                raise SourceMissing(
                    f"The folder {part.path} does not exist.", hint="it may have been moved or renamed"
                )
    _remember(model, settings)
    return _place(base, settings)


def part_is_here(part: Checkpoint | Adapter, settings: Settings) -> bool:
    """The checkpoint or adapter is complete on this machine. Cheap: a finished folder is the only one of its name."""
    return folder(part, settings.models_dir).is_dir()


def remove(model: Model, settings: Settings) -> int:
    """Delete what was fetched for the model, and return the bytes freed. A base that another adapter needs stays.

    Raises:
        Conflict: it is being fetched.
    """
    freed = 0
    for part in model.parts:
        target = _place(part, settings)
        if not part.repo or target in _needed(settings):
            continue
        with only_one(model.name, target, settings):
            for each in (target, work_of(target)):
                freed += folder_size(each)
                shutil.rmtree(each, ignore_errors=True)
        prune(target, settings.models_dir)
    return freed


class _Ledger:
    """How far every file of several repositories is."""

    def __init__(self, orders: tuple[Order, ...], on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._sizes = {
            order.label(name): order.repository.files[name].size for order in orders for name in order.names
        }
        self._done = dict.fromkeys(self._sizes, 0)

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(size or 0 for size in self._sizes.values())

    def note(self, label: str, done: int) -> None:
        """So much of this file is here."""
        self._done[label] = done

    def report(self, at: Progress) -> None:
        """Tell how far all of them are; `at` says what is being done."""
        files = tuple(FileProgress(label, self._done[label], size) for label, size in self._sizes.items())
        self._on_progress(Progress(sum(self._done.values()), self.total, at.stage, files))


def _receive_alone(
    order: Order, ledger: _Ledger, delivery: Delivery, settings: Settings, *, force: bool
) -> None:
    """Receive it, unless another process did meanwhile; while one does, tell how far that one is."""
    delivery.target.parent.mkdir(parents=True, exist_ok=True)
    label = order.label(order.names[-1])

    def elsewhere() -> None:
        ledger.note(label, folder_size(delivery.work))
        delivery.report(0, None, "download")

    with alone(delivery.target, settings, waiting=elsewhere):
        if force or not delivery.target.is_dir():
            ledger.note(label, 0)
            _receive(order, ledger, delivery)
    for name in order.names:
        ledger.note(order.label(name), order.repository.files[name].size or 0)


def _receive(order: Order, ledger: _Ledger, delivery: Delivery) -> None:
    """Bring every file, then let the folder appear. What is there under its name is replaced in the same moment."""
    work = _clean_work(order, delivery)
    whole = work / _WHOLE
    unsafe = pickled(order.names)
    for name in order.names:
        safe = whole / as_safetensors(name)
        if name in unsafe and safe.is_file():
            continue
        if not _is_whole(whole / name, order.repository.files[name].size):

            def note(one: Progress, label: str = order.label(name)) -> None:
                ledger.note(label, one.done)
                ledger.report(one)

            hub.receive(
                order.repository.remote(name),
                Delivery(
                    f"{delivery.what} ({name})", whole / name, work / _PARTS / name, note, delivery.cancelled
                ),
            )
        ledger.note(order.label(name), (whole / name).stat().st_size)
        if name in unsafe:
            converted(whole / name, safe)
            (whole / name).unlink()
    if len(unsafe) > 1:
        write_index(whole)
    _write_manifest(whole, order)
    old = delivery.work / "old"
    if delivery.target.exists():
        delivery.target.rename(old)
    whole.rename(delivery.target)
    shutil.rmtree(delivery.work, ignore_errors=True)


def _clean_work(order: Order, delivery: Delivery) -> Path:
    """The folder of what has arrived of this commit; what is left of another one is gone."""
    work = delivery.work / order.repository.commit[:16]
    for each in (work / _WHOLE, work / _PARTS):
        each.mkdir(parents=True, exist_ok=True)
    for other in delivery.work.iterdir():
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    return work


def _is_whole(path: Path, size: int | None) -> bool:
    """It was verified when it got its name."""
    return path.is_file() and (size is None or path.stat().st_size == size)


def _write_manifest(whole: Path, order: Order) -> None:
    found = order.repository
    manifest = {
        "repo": found.repo,
        "revision": found.revision,
        "commit": found.commit,
        "files": {name: found.files[name].size for name in order.names},
    }
    (whole / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _check_adapters(model: Model, base: Said, settings: Settings) -> None:
    for adapter in model.adapters:
        check_width(_place(adapter, settings), adapter.where, base, _base(model).where)


def _remember(model: Model, settings: Settings) -> None:
    """Write the model's facts and its base beside what was fetched for it, so that it is known without the hub."""
    for part in model.parts:
        path = _place(part, settings) / MANIFEST
        if not part.repo or not path.is_file():
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        added: dict[str, object] = {}
        if isinstance(part, Adapter):
            added["base"] = str(_place(_base(model), settings))
        if part in model.own_parts:
            added["model"] = model.model_dump(mode="json", exclude_defaults=True)
        if manifest != manifest | added:
            path.write_text(json.dumps(manifest | added, indent=1), encoding="utf-8")


def _needed(settings: Settings) -> set[Path]:
    """Bases that adapters on this machine are laid over."""
    manifests = settings.models_dir.glob(f"checkpoints/*/*/{MANIFEST}")
    bases = (json.loads(path.read_text(encoding="utf-8")).get("base") for path in manifests)
    return {Path(base) for base in bases if base}


def _arrived(parts: Sequence[Checkpoint | Adapter], settings: Settings) -> int:
    return sum(folder_size(work_of(_place(part, settings))) for part in parts)


def _place(part: Checkpoint | Adapter, settings: Settings) -> Path:
    return folder(part, settings.models_dir)


def _base(model: Model) -> Checkpoint:
    assert model.checkpoint is not None
    return model.checkpoint
