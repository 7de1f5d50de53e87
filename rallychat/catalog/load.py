"""Reads what is known of families and models: the shipped TOML files, then the user's own over them.

A file's name is its id: `families/chatml.toml` is the family `chatml`. A user's file of the same name is laid
over the shipped one key by key (`[weights]` is replaced whole), so one line is enough to change one fact.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from rallychat.catalog import brought, references
from rallychat.catalog.brought import Known
from rallychat.catalog.engines import engine_for
from rallychat.catalog.places import folder, place
from rallychat.catalog.sizing import weights_size
from rallychat.catalog.types import Family, Model
from rallychat.errors import NotFound, SettingsError
from rallychat.settings import Settings

SHIPPED = Path(__file__).resolve().parent.parent / "data"
_MERGED_TABLES = ("sampling", "options", "reasoning", "memory", "context", "tools", "generation")

Facts = TypeVar("Facts", bound=BaseModel)


@dataclass(frozen=True)
class Catalog:
    """Every family and model that can be named. `models` keeps the order of a menu: small to large."""

    models: Mapping[str, Model]
    families: Mapping[str, Family]
    models_dir: Path = field(default_factory=Path)
    """Where weights are kept; facts of a hub file come from its header once it is there."""
    settings: Settings = field(default_factory=Settings, repr=False)
    """They choose the engine of a model that two could run."""
    called: Mapping[str, str] = field(default_factory=dict)
    """Ids of models that were brought along, by what they were asked for as."""

    @classmethod
    def load(cls, settings: Settings) -> Catalog:
        """The shipped facts, with the user's own from `settings.catalog_dir` over them.

        Weights in the models folder that no file describes are models too; their header says what they are.

        Raises:
            SettingsError: a file is wrong; the message names the file and the key.
        """
        families = _read(Family, settings.catalog_dir / "families", over=_shipped_families())
        models = _read(Model, settings.catalog_dir / "models", over=_shipped_models())
        for model in models.values():
            for family in _families_of(model.facts):
                if family not in families:
                    raise SettingsError(
                        f"{model.origin}: key 'family' names '{family}', which is not a family.",
                        hint=_near(family, families),
                    )
        described = [model.facts for model in models.values()]
        places = {place(model.weights, settings.models_dir) for model in described if model.weights}
        own = {folder(part, settings.models_dir) for model in described for part in model.own_parts}
        fetched = [
            model
            for model in brought.fetched(settings.models_dir)
            if not brought.is_known_place(model, own, settings.models_dir) and model.family in families
        ]
        found = references.found(settings.models_dir, known=places)
        known = [each for model in (*described, *fetched, *found) for each in _apart(model)]
        chosen = [model.run_by(engine_for(model, settings)) for model in known]
        in_order = sorted(chosen, key=_menu_order)
        return cls(
            MappingProxyType({model.id: model for model in in_order}),
            MappingProxyType({name: family.facts for name, family in families.items()}),
            settings.models_dir,
            settings,
        )

    def find(self, name: str) -> Model:
        """The catalog's model of this id or, in any case, this id, name or hub id.

        Never another path or hub file than those that brought a model along.

        Raises:
            NotFound: the hint has near matches.
        """
        if (named := self.called.get(name, name)) in self.models:
            return self.models[named]
        folded = name.strip().casefold()
        for model in self.models.values():
            if folded in (model.id.casefold(), model.name.casefold()):
                return model
        for model in self.models.values():
            if folded in map(str.casefold, model.hub_ids):
                return model
        raise NotFound("model", name, hint=_near(name, self._names()))

    def knows(self, name: str) -> bool:
        """Whether `find` finds it."""
        try:
            self.find(name)
        except NotFound:
            return False
        return True

    def resolve(self, name: str, *, family: str | None = None) -> Model:
        """The model of this name: in the catalog, or a file or folder on this machine, or a file on the hub.

        Accepts an id, name or hub id (any case); a path to a GGUF file, or to a folder with one, with a checkpoint
        or with an adapter; `hub:owner/repo/file.gguf` or `owner/repo:file.gguf`, each with `@revision` behind it
        if wanted. `family` is the prompt format to use, whatever is said elsewhere.

        Raises:
            NotFound: nothing has this name; the hint has near matches.
            InvalidRequest: a folder holds several GGUF files; the hint lists them.
            FamilyNeeded: a checkpoint in a folder does not say its prompt format.
            SettingsError: the file is not a GGUF file.
            Unsupported: a checkpoint in a folder could not be run, or not safely.
        """
        try:
            found = self.find(name)
        except NotFound:
            model = self._brought(name, family)
            if model is None:
                raise
            return self.run(model)
        return self._in_format(found, family)

    def run(self, model: Model) -> Model:
        """The model with the engine that runs it here."""
        return model.run_by(engine_for(model, self.settings))

    def _brought(self, name: str, family: str | None) -> Model | None:
        path = references.existing(name)
        if path is not None and path.is_dir():
            model = brought.local(
                path,
                known=Known(self.families, self.models, family),
                models_dir=self.models_dir,
                code_allowed=not {name, str(path.resolve())}.isdisjoint(self.settings.remote_code),
            )
            if model is not None:
                return model
        found = references.resolve(name, models_dir=self.models_dir)
        return None if found is None else self._in_format(found, family)

    def _in_format(self, model: Model, family: str | None) -> Model:
        if family is None or family == model.family:
            return model
        if family not in self.families:
            raise NotFound("family", family, hint=_near(family, self.families))
        return model.model_copy(update={"family": family, "template": self.families[family].template})

    def family(self, model: Model) -> Family:
        """The family `model` belongs to."""
        try:
            return self.families[model.family]
        except KeyError:
            raise NotFound("family", model.family, hint=_near(model.family, self.families)) from None

    def including(self, model: Model, *, called: str | None = None) -> Catalog:
        """The same catalog with `model` in it, so that it is listed and found by its id, its name and as `called`."""
        models = MappingProxyType({**self.models, model.id: model})
        names = self.called if called is None else MappingProxyType({**self.called, called: model.id})
        return replace(self, models=models, called=names)

    def _names(self) -> list[str]:
        return [name for model in self.models.values() for name in (model.id, model.name, *model.hub_ids)]


def _families_of(model: Model) -> list[str]:
    return [model.family, *(each.family for each in model.adapters if each.family)]


def _apart(model: Model) -> list[Model]:
    """The model; of a checkpoint with several adapters, also each of them, served by the engine of the base."""
    if model.checkpoint is None or len(model.adapters) < 2:
        return [model]
    return [
        model,
        *(
            model.model_copy(
                update={
                    "id": f"{model.id}:{adapter.name}",
                    "name": f"{model.name}: {adapter.name}",
                    "adapter": adapter.name,
                    "shares": model.id,
                    "family": adapter.family or model.family,
                }
            )
            for adapter in model.adapters
        ),
    ]


def _menu_order(model: Model) -> tuple[bool, int, str]:
    return model.hidden, weights_size(model) or 0, model.id


def _near(name: str, names: Iterable[str]) -> str:
    folded = {known.casefold(): known for known in names}
    near = [folded[match] for match in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    return "did you mean " + " or ".join(f"'{match}'" for match in near) + "?" if near else ""


@dataclass(frozen=True)
class _Read(Generic[Facts]):
    """What a file says, as it stands there and checked."""

    table: Mapping[str, Any]
    facts: Facts
    origin: Path


@cache
def _shipped_families() -> Mapping[str, _Read[Family]]:
    """They do not change while we run."""
    return MappingProxyType(_read(Family, SHIPPED / "families", over={}))


@cache
def _shipped_models() -> Mapping[str, _Read[Model]]:
    return MappingProxyType(_read(Model, SHIPPED / "models", over={}))


def _read(kind: type[Facts], folder: Path, *, over: Mapping[str, _Read[Facts]]) -> dict[str, _Read[Facts]]:
    """Every fact file of a folder, laid over what is known already."""
    read = dict(over)
    for path in sorted(folder.glob("*.toml")):
        below = read[path.stem].table if path.stem in read else {}
        table = _laid_over(below, _table(path))
        read[path.stem] = _Read(table, _checked(kind, table, path), path)
    return read


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}.") from exc
    named = table.setdefault("id", path.stem)
    if named != path.stem:
        raise SettingsError(
            f"{path}: key 'id' is '{named}', but a file's name is its id.", hint=f"rename it to {named}.toml"
        )
    return table


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for name in _MERGED_TABLES:
        if isinstance(below.get(name), dict) and isinstance(above.get(name), dict):
            merged[name] = {**below[name], **above[name]}
    return merged


def _checked(kind: type[Facts], table: Mapping[str, Any], path: Path) -> Facts:
    try:
        return kind.model_validate(table)
    except ValidationError as exc:
        first = exc.errors()[0]
        keys = [str(part) for part in first["loc"]]
        if keys[:1] == ["weights"]:
            del keys[1:2]  # pydantic puts the kind ("hub", "wheel") there; it is no key of the file
        key = ".".join(keys)
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(kind.model_fields)) if len(keys) == 1 else ""
            raise SettingsError(
                f"{path}: key '{key}' is not known.", hint=f"known keys: {known}" if known else ""
            ) from exc
        if first["type"] == "missing":
            raise SettingsError(f"{path}: key '{key}' is missing.") from exc
        said = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{path}: key '{key}': {said}." if key else f"{path}: {said}.") from exc
