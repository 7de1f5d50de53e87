"""What a person chose for each model on the page: how it answers, how it summarises, and how it is run.

Kept in one JSON file of the data folder and laid over the catalog's facts. What is no longer understood in it is
left out with a line in the log: it never keeps a server from starting.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.catalog import Catalog, Model
from rallychat.catalog.types import SamplingFacts
from rallychat.errors import InvalidRequest, StoreError
from rallychat.settings import Settings

log = logging.getLogger(__name__)

FILE = "choices.json"
MOST_ASKED = 4000
"""Characters of what a model is asked for a summary."""


class Choice(BaseModel):
    """What was chosen for one model; what was not is left to the model, its family and the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling: SamplingFacts = SamplingFacts()
    summary: SamplingFacts = SamplingFacts()
    """The same for summaries of the conversation."""
    summary_prompt: str = Field("", max_length=MOST_ASKED)
    """What the model is asked for a summary; empty: as the settings say."""
    engine: Literal["auto", "llamacpp", "transformers"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["auto", "none", "int8", "int4"] = "auto"
    multi_gpu: bool | None = None
    """Over all GPUs; None: as the settings say."""

    @property
    def running(self) -> tuple[object, ...]:
        """The part that takes effect when the model is loaded the next time."""
        return self.engine, self.dtype, self.quantize, self.multi_gpu

    def without(self, names: frozenset[str]) -> Choice:
        """The same, but for what is said elsewhere."""
        said = names & {"engine", "dtype", "quantize", "multi_gpu"}
        return self.model_copy(update={name: type(self).model_fields[name].default for name in said})

    def over(self, model: Model) -> Model:
        """The model's facts with these laid over them."""
        facts: dict[str, Any] = {
            "sampling": SamplingFacts(**self.sampling.value().over(model.sampling.value()).as_dict())
        }
        if (self.engine == "llamacpp" and model.weights) or (
            self.engine == "transformers" and model.checkpoint
        ):
            facts["engine"] = self.engine
        if facts.get("engine", model.engine) == "transformers":
            facts["options"] = {**model.options, **self._options()}
        return model.model_copy(update=facts)

    def _options(self) -> dict[str, Any]:
        named = {"dtype": self.dtype, "quantize": self.quantize}
        options: dict[str, Any] = {name: value for name, value in named.items() if value != "auto"}
        return options if self.multi_gpu is None else {**options, "multi_gpu": self.multi_gpu}


NOTHING = Choice()
"""Nothing was chosen."""


class Choices:
    """The choices of one data folder.

    Args:
        typed: settings that were flags of this start. How a model runs follows them, not what was kept earlier,
            until somebody chooses anew.
    """

    def __init__(
        self, file: Path, chosen: Mapping[str, Choice], *, typed: frozenset[str] = frozenset()
    ) -> None:
        self._file = file
        self._chosen = dict(chosen)
        self._typed = typed
        self._anew: set[str] = set()
        self._plain: dict[str, Model] = {}

    @classmethod
    def load(cls, settings: Settings) -> Choices:
        """Those that were kept."""
        file = settings.data_dir / FILE
        return cls(file, dict(_kept(file)), typed=settings.typed)

    def of(self, model_id: str) -> Choice:
        """What was chosen for a model."""
        return self._chosen.get(model_id, NOTHING)

    def over(self, catalog: Catalog) -> Catalog:
        """The catalog with every choice laid over it."""
        for model in [catalog.models[name] for name in self._chosen if name in catalog.models]:
            plain = self._plain.setdefault(model.id, model)
            chosen = self._chosen[model.id]
            if model.id not in self._anew:
                chosen = chosen.without(self._typed)
            catalog = catalog.including(chosen.over(plain))
        return catalog

    def plain(self, model: Model) -> Model:
        """The model as the catalog has it, without what was chosen."""
        return self._plain.get(model.id, model)

    def keep(self, model: Model, choice: Choice, catalog: Catalog) -> Catalog:
        """Keeps a choice, also over a restart, and returns the catalog with it.

        Raises:
            StoreError: the file cannot be written.
        """
        chosen = {**self._chosen, model.id: choice}
        if choice == NOTHING:
            del chosen[model.id]
        _write(self._file, {name: each.model_dump(exclude_defaults=True) for name, each in chosen.items()})
        self._chosen = chosen
        self._anew.add(model.id)
        return catalog.including(choice.over(self._plain.setdefault(model.id, model)))


def checked(given: Mapping[str, Any]) -> Choice:
    """A choice as somebody gives it.

    Raises:
        InvalidRequest: a value is wrong; the message names it.
    """
    try:
        return Choice.model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"'{name}': {first['msg']}.", param=name) from exc


def _kept(file: Path) -> list[tuple[str, Choice]]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        entries = list(table.items())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError) as exc:
        log.warning("%s cannot be read: %s", file, exc)
        return []
    kept = []
    for name, facts in entries:
        try:
            kept.append((name, checked(facts)))
        except InvalidRequest as exc:
            log.warning("%s: what was chosen for '%s' is left out: %s", file, name, exc.message)
    return kept


def _write(file: Path, table: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")
        fresh.replace(file)
    except OSError as exc:
        raise StoreError(
            f"{file} cannot be written: {exc.strerror or exc}.", hint="your choice is not kept"
        ) from exc
