"""Where weights are kept below the models folder. One place per file, so two models may share it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from pydantic import ValidationError

from rallychat.catalog.types import (
    Adapter,
    Checkpoint,
    FileWeights,
    HubWeights,
    NoWeights,
    Weights,
    WheelWeights,
)


def place(weights: Weights, models_dir: Path) -> Path:
    """The file these weights are, or will be once fetched. A file of the user's own stays where it is."""
    match weights:
        case WheelWeights():
            folder = f"{weights.distribution}-{weights.version}"
            return models_dir / "registry" / folder / PurePosixPath(weights.member).name
        case HubWeights():
            revision = [] if weights.revision == "main" else [f"@{quote(weights.revision, safe='')}"]
            return models_dir.joinpath("hub", *weights.repo.split("/"), *revision, *weights.file.split("/"))
        case FileWeights():
            return Path(weights.path).expanduser()
        case NoWeights():
            return models_dir / "none"


def folder(part: Checkpoint | Adapter, models_dir: Path) -> Path:
    """The folder of a checkpoint or adapter, or where it will be once fetched. One of the user's own stays."""
    if part.path:
        return Path(part.path).expanduser()
    owner, name = part.repo.split("/")
    revision = "" if part.revision == "main" else f"@{quote(part.revision, safe='')}"
    return models_dir / "checkpoints" / owner / f"{name}{revision}"


def on_hub(path: Path, models_dir: Path) -> HubWeights | None:
    """The hub file that `place` puts at `path`, or None if it puts none there."""
    try:
        top, owner, repo, *rest = path.relative_to(models_dir).parts
    except ValueError:
        return None
    revision = unquote(rest.pop(0)[1:]) if rest and rest[0].startswith("@") else "main"
    if top != "hub" or not rest:
        return None
    try:
        return HubWeights(kind="hub", repo=f"{owner}/{repo}", file="/".join(rest), revision=revision)
    except ValidationError:  # something else that lies there
        return None
