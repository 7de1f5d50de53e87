"""Models that a person brings: a checkpoint or an adapter, described by what it says of itself.

The prompt format is what the checkpoint or somebody's family file says; where neither does, a person is asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from rallychat.catalog import architectures
from rallychat.catalog.places import folder
from rallychat.catalog.repository import ADAPTER_CONFIG, CONFIG, MANIFEST, Said, is_adapter, pickles, weights
from rallychat.catalog.safetensors import header
from rallychat.catalog.types import Adapter, Checkpoint, Family, Model
from rallychat.errors import FamilyNeeded, NotFound, Unsupported

logger = logging.getLogger(__name__)

SHIPPED: Final = "shipped"
_NOT_FOR_PEOPLE: Final = ("echo", SHIPPED)


@dataclass(frozen=True)
class Known:
    """What families and models are known already, and the family a person named."""

    families: Mapping[str, Family]
    models: Mapping[str, Model]
    family: str | None = None

    def family_of(self, name: str, own: Said, base: Said, base_name: str) -> str:
        """The prompt format of a model; what was fine-tuned goes before the base below it.

        Raises:
            FamilyNeeded: neither files nor names say it.
            NotFound: there is no family of the name a person gave.
        """
        if self.family is not None:
            if self.family not in self.families:
                near = get_close_matches(self.family, self.families, n=3, cutoff=0.5)
                raise NotFound(
                    "family", self.family, hint=f"did you mean {' or '.join(near)}?" if near else ""
                )
            return self.family
        template = own.chat_template or base.chat_template
        for each in (name, base_name):
            found = self._family_by_name(each)
            if found is not None and (not template or self.families[found].prefer_shipped):
                return found
            if template:
                return SHIPPED
        raise FamilyNeeded(name, tuple(sorted(set(self.families) - set(_NOT_FOR_PEOPLE))))

    def living_copy(self, repo: str) -> str:
        """Where the same weights are, if a model's file says so."""
        bases = (model.checkpoint for model in self.models.values() if model.checkpoint)
        return next((base.living_copy for base in bases if base.repo.casefold() == repo.casefold()), "")

    def _family_by_name(self, name: str) -> str | None:
        folded = name.casefold()
        for model in self.models.values():
            if folded in map(str.casefold, model.hub_ids):
                return model.family
        for family in self.families.values():
            if any(fnmatchcase(folded, pattern.casefold()) for pattern in family.recognises):
                return family.id
        return None


def describe(
    name: str,
    checkpoint: Checkpoint,
    *,
    own: Said,
    base: Said,
    known: Known,
    license: str = "",  # noqa: A002
    url: str = "",
) -> Model:
    """The model called `name`, whose checkpoint, or one adapter over it, says `own`, and its base `base`.

    Raises:
        FamilyNeeded: nothing says its prompt format.
    """
    family = known.family_of(name, own, base, checkpoint.where)
    count = checkpoint.parameters
    return Model(
        id=name,
        name=name.rstrip("/").rsplit("/", 1)[-1],
        family=family,
        checkpoint=checkpoint,
        parameters=as_written(count) if count else "",
        license=license,
        window=base.window or known.families[family].window or 2048,
        cache_bytes_per_token=base.cache_bytes_per_token,
        template=_template(known, family, own, base),
        description="A LoRA adapter." if checkpoint.adapters else "A checkpoint.",
        url=url,
    )


def _template(known: Known, family: str, own: Said, base: Said) -> str:
    """The chat template: a family that a person named brings its own, else the shipped one goes before it."""
    family_s = known.families[family].template
    if known.family is not None and family_s:
        return family_s
    return own.chat_template or base.chat_template or family_s


def local(path: Path, *, known: Known, models_dir: Path, code_allowed: bool) -> Model | None:
    """The model in a folder, or None if it holds neither checkpoint nor adapter.

    Raises:
        Unsupported: what is there cannot be run, or not safely.
        FamilyNeeded: nothing says its prompt format.
    """
    path = path.resolve()
    names = _names(path)
    if is_adapter(names):
        return _local_adapter(path, known, models_dir)
    if CONFIG not in names:
        return None
    _refuse_pickles(path, names)
    said = Said.of(path)
    architectures.check(str(path), said, code_allowed=code_allowed)
    return describe(str(path), _in_folder(path, names, said), own=said, base=said, known=known)


def fetched(models_dir: Path) -> Iterator[Model]:
    """The models that were fetched by their hub ids, as they were described then. Unreadable ones are left out."""
    for path in sorted(models_dir.glob(f"checkpoints/*/*/{MANIFEST}")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8")).get("model")
            if facts:
                yield Model.model_validate(facts)
        except (OSError, ValueError, AttributeError, ValidationError) as exc:
            logger.warning("%s cannot be read: %s", path, exc)


def as_written(parameters: int) -> str:
    """A number of parameters as authors write it: 135M, 1.7B."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}".removesuffix(".0") + "B"
    return f"{parameters / 1e6:.0f}M" if parameters >= 1e6 else ""


def _local_adapter(path: Path, known: Known, models_dir: Path) -> Model:
    own = Said.of(path)
    _refuse_pickles(path, _names(path))
    if not own.base:
        raise Unsupported(
            f"The adapter in {path} does not name its base in {ADAPTER_CONFIG}.",
            hint="say it with --base-url",
        )
    adapter = Adapter(
        name=_word(path.name), path=str(path), size=(path / "adapter_model.safetensors").stat().st_size
    )
    below = Path(own.base).expanduser()
    if below.is_dir():
        said = Said.of(below)
        base = _in_folder(below.resolve(), _names(below), said)
    else:
        base = on_hub(own.base, known)
        said = Said.of(folder(base, models_dir))
    laid_over = base.model_copy(update={"adapters": (adapter,)})
    return describe(str(path), laid_over, own=own, base=said, known=known)


def on_hub(repo: str, known: Known) -> Checkpoint:
    """The base of this hub id, with what other models' files know of it."""
    bases = [model.checkpoint for model in known.models.values() if model.checkpoint]
    facts = next((base for base in bases if base.repo.casefold() == repo.casefold()), None)
    if facts is not None:
        return facts.model_copy(update={"adapters": ()})
    try:
        return Checkpoint(repo=repo)
    except ValidationError as exc:
        raise Unsupported(
            f"The adapter's base '{repo}' is neither a folder here nor a hub repository.",
            hint="say where it is with --base-url",
        ) from exc


def _in_folder(path: Path, names: Sequence[str], said: Said) -> Checkpoint:
    files = [name for name in weights(names) if name.endswith(".safetensors")]
    count = 0
    for name in files:
        for shape in header(path / name).values():
            size = 1
            for length in shape:
                size *= length
            count += size
    return Checkpoint(
        path=str(path),
        architecture=said.architecture,
        parameters=count or None,
        size=sum((path / name).stat().st_size for name in files),
    )


def _refuse_pickles(path: Path, names: Sequence[str]) -> None:
    if weights(names):
        return
    unsafe = pickles(names)
    if unsafe:
        raise Unsupported(
            f"{path} holds its weights as pickles only ({unsafe[0]}), which can run code when they are loaded.",
            hint="convert them to safetensors, or take a copy of the model that has them",
        )
    raise Unsupported(f"{path} holds no weights in the safetensors format.")


def _names(path: Path) -> list[str]:
    return [each.name for each in path.iterdir()]


def _word(name: str) -> str:
    """A name that a request can carry."""
    kept = "".join(each if each.isalnum() or each in "._+-" else "-" for each in name if each.isascii())
    return kept.lstrip("._+-") or "adapter"


def is_known_place(model: Model, places: set[Path], models_dir: Path) -> bool:
    """Another model's file describes what this one was fetched for."""
    return all(folder(part, models_dir) in places for part in model.own_parts)
