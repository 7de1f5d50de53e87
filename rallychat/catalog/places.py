"""Where weights are kept below the models folder. One place per file, so two models may share it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rallychat.catalog.types import FileWeights, HubWeights, NoWeights, Weights, WheelWeights


def place(weights: Weights, models_dir: Path) -> Path:
    """The file these weights are, or will be once fetched. A file of the user's own stays where it is."""
    match weights:
        case WheelWeights():
            folder = f"{weights.distribution}-{weights.version}"
            return models_dir / "registry" / folder / PurePosixPath(weights.member).name
        case HubWeights():
            revision = [] if weights.revision == "main" else [f"@{weights.revision.replace('/', '--')}"]
            return models_dir.joinpath("hub", *weights.repo.split("/"), *revision, *weights.file.split("/"))
        case FileWeights():
            return Path(weights.path).expanduser()
        case NoWeights():
            return models_dir / "none"
