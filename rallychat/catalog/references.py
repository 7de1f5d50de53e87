"""Models that are named by where they are: a GGUF file, a folder with one, a file on the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rallychat.catalog.brought import as_written
from rallychat.catalog.gguf import GGUF, read_gguf
from rallychat.catalog.places import on_hub, place
from rallychat.catalog.types import FileWeights, HubWeights, Model
from rallychat.errors import InvalidRequest, NotFound, SettingsError

logger = logging.getLogger(__name__)

FAMILY = "shipped"
"""Such a model's template can only come from its own header."""

_UNKNOWN_WINDOW = 8192
"""Until the header is here; the engine then takes the smaller of the two."""

_OWNER_REPO = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_FILE = r"(?P<file>(?:[\w+-][\w.+-]*/)*[\w+-][\w.+-]*\.gguf)(?:@(?P<revision>[\w./-]+))?"
_HUB = (re.compile(rf"hub:{_OWNER_REPO}/{_FILE}"), re.compile(rf"(?:hub:)?{_OWNER_REPO}:{_FILE}"))
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def resolve(name: str, *, models_dir: Path) -> Model | None:
    """The model `name` points at, or None if it looks neither like a path nor like a hub file.

    Raises:
        NotFound: it looks like a path, and nothing is there.
        InvalidRequest: a folder with several GGUF files.
        SettingsError: a file that is not GGUF.
    """
    path = existing(name)
    if path is not None:
        return local_model(path)
    for pattern in _HUB:
        if match := pattern.fullmatch(name):
            return hub_model(
                match["repo"], match["file"], revision=match["revision"] or "main", models_dir=models_dir
            )
    if name.lower().endswith(".gguf") or name.startswith(("/", "./", "../", "~")):
        hint = "the path must lead to a GGUF file, or to a folder with one or with a checkpoint"
        raise NotFound("model file", name, hint=hint)
    return None


def local_model(path: Path) -> Model:
    """The model in a GGUF file, or in a folder with one; its facts come from the file's header.

    Every way to the file is the same model. It is opened by the way that was taken: a link's name may say more than
    its target's, and parts of split weights lie beside the link.
    """
    file = (_only_gguf(path) if path.is_dir() else path).absolute()
    header = read_gguf(file)
    return Model(
        id=str(file.resolve()),
        weights=FileWeights(kind="file", path=str(file), size=file.stat().st_size),
        description="A file on this machine.",
        **_facts(header, file),
    )


def hub_model(repo: str, file: str, *, revision: str, models_dir: Path) -> Model:
    """The model in a file on the hub; its facts come from the header once it is on this machine."""
    weights = HubWeights(kind="hub", repo=repo, file=file, revision=revision)
    suffix = "" if revision == "main" else f"@{revision}"
    here = place(weights, models_dir)
    if here.is_file():
        facts = _facts(read_gguf(here), here)
    else:
        facts = {"name": Path(file).stem, "family": FAMILY, "window": _UNKNOWN_WINDOW}
    return Model(
        id=f"hub:{repo}/{file}{suffix}",
        weights=weights,
        description="A file on the Hugging Face hub.",
        url=f"https://huggingface.co/{repo}",
        **facts,
    )


def found(models_dir: Path, *, known: Collection[Path]) -> Iterator[Model]:
    """The models whose weights lie below the models folder, except at the `known` places.

    Hub files fetched by name, and GGUF files a person put into the folder itself. Unreadable ones are left out.
    """
    for path in sorted((*models_dir.glob("*.gguf"), *models_dir.glob("hub/**/*.gguf"))):
        if path in known or not is_first_part(path.name):
            continue
        weights = on_hub(path, models_dir)
        try:
            if weights is not None:
                yield hub_model(weights.repo, weights.file, revision=weights.revision, models_dir=models_dir)
            elif path.parent == models_dir:
                yield local_model(path)
        except SettingsError as exc:
            logger.warning("%s", exc)


def existing(name: str) -> Path | None:
    """The file or folder of this name, if there is one."""
    if not name or "\0" in name:
        return None
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, no home folder, a lone surrogate
        return None


def _only_gguf(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() == ".gguf")
    models = [
        path for path in found if is_first_part(path.name) and not path.name.lower().startswith("mmproj")
    ]
    if not models:
        raise NotFound("GGUF file or checkpoint in the folder", str(folder))
    if len(models) > 1:
        listed = ", ".join(path.name for path in models)
        raise InvalidRequest(
            f"The folder {folder} holds {len(models)} GGUF files.",
            param="model",
            hint=f"name one of: {listed}",
        )
    return models[0]


def is_first_part(name: str) -> bool:
    """Of weights split into several files, the engine is given the first."""
    split = _SPLIT.fullmatch(name)
    return split is None or int(split[2]) == 1


def _facts(header: GGUF, file: Path) -> dict[str, Any]:
    return {
        "name": header.name or file.stem,
        "family": FAMILY,
        "parameters": as_written(header.parameters),
        "license": header.license,
        "window": max(header.context_length or 2048, 256),
        "cache_bytes_per_token": header.kv_bytes_per_token,
    }
