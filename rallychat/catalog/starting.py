"""What to start with: the model that a base and a fine-tuned checkpoint name together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rallychat.catalog import generation
from rallychat.catalog.load import Catalog
from rallychat.catalog.types import Checkpoint, Model
from rallychat.errors import InvalidRequest, NotFound
from rallychat.settings import Settings

Resolve = Callable[[str, str | None], Model]
"""Gives the model of a name, over a base where one is named."""


@dataclass(frozen=True, slots=True)
class Start:
    """What to start with. `notes` say, a sentence each, what was done in another way than it was asked for."""

    settings: Settings
    catalog: Catalog
    notes: tuple[str, ...] = ()


def start(settings: Settings, catalog: Catalog, resolve: Resolve | None = None) -> Start:
    """Settings whose `model` is what `base_url` and `ft_ckpt_url` name, and a catalog that has it.

    A fine-tuned checkpoint decides; the base below it may be another copy than the one the catalog names. One that
    was trained on another base is left out: shells keep variables from one example to the next. `resolve` finds
    models that the catalog does not have, over the base that is named if they want one.

    Raises:
        NotFound, InvalidRequest, SettingsError: what is named is not there or cannot be used.
    """
    find = resolve or (lambda name, _: catalog.resolve(name, family=settings.family))
    model, note = _named(settings, catalog, find)
    configs = (settings.gen_config_path, settings.gen_config_summarization_path)
    remarks = (remark for path in configs for remark in generation.remarks(path))
    said = tuple(filter(None, (note, *map(_found, configs), *remarks)))
    if model is None:
        return Start(settings, catalog, said)
    called = settings.ft_ckpt_url or settings.base_url or settings.model
    with_it = catalog.including(model, called=called)
    return Start(settings.model_copy(update={"model": model.id}), with_it, said)


def _named(settings: Settings, catalog: Catalog, resolve: Resolve) -> tuple[Model | None, str]:
    """The model, if one is named that the catalog does not have as it is, and a note."""
    base, tuned = settings.base_url, settings.ft_ckpt_url
    if tuned:
        if base and (other := _complete(base, tuned, catalog)) is not None:
            return other, f"'{tuned}' was not trained on '{base}', which answers without it."
        model = resolve(tuned, base)
        return (_on_base(model, base) if base else model), ""
    return (resolve(base, None) if base else _brought(settings, catalog, resolve)), ""


def _brought(settings: Settings, catalog: Catalog, resolve: Resolve) -> Model | None:
    """The model to start with, if it is none of the catalog's, or if its prompt format is said anew."""
    try:
        catalog.find(settings.model)
    except NotFound:
        pass
    else:
        if settings.family is None:
            return None
    try:
        return resolve(settings.model, None)
    except NotFound:  # said where a person looks: in the page and by /readyz
        return None


def _found(path: Path | None) -> str:
    """Where a generation config was found, if not where it was said to be."""
    if path is None or not (found := generation.locate(path)).shipped:
        return ""
    return f"'{path}' is not there; RallyChat's own {found.path.name} is used."


def _complete(base: str, tuned: str, catalog: Catalog) -> Model | None:
    """The catalog's model that `base` is by itself, if `tuned` is no part of it."""
    try:
        model = catalog.find(base)
    except NotFound:
        return None
    return None if tuned in model.hub_ids else model


def _on_base(model: Model, base: str) -> Model:
    """The model with its adapter over another copy of its base."""
    if model.checkpoint is None or not model.checkpoint.adapters:
        raise InvalidRequest(
            f"{model.name} has no base below it that '{base}' could stand for.",
            param="base_url",
            hint="give --base-url alone to serve that checkpoint",
        )
    if base in (model.checkpoint.repo, model.checkpoint.path):
        return model
    folder = Path(base).expanduser()
    own = folder.is_dir()
    where = {
        "repo": "" if own else base,
        "path": str(folder) if own else "",
        "revision": "main",
        "size": None,
    }
    try:
        checkpoint = Checkpoint.model_validate(model.checkpoint.model_dump() | where | {"living_copy": ""})
    except ValidationError as exc:
        raise InvalidRequest(
            f"'{base}' is neither a hub repository nor a folder here.",
            param="base_url",
            hint="a hub repository is owner/name",
        ) from exc
    return model.model_copy(update={"checkpoint": checkpoint, "weights": None})
