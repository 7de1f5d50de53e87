"""The review page of one model: where it comes from, what it needs, how it will answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rallychat.cards import ModelCard
from rallychat.catalog import Family, Model, Sampling
from rallychat.catalog.types import Adapter, Checkpoint, HubWeights, WheelWeights
from rallychat.ui.machine import Fit, Machine
from rallychat.ui.model_view import ModelCardView
from rallychat.ui.views import size

_HUB: Final = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something of a model comes from; `url` is empty if it is nowhere on the web."""

    what: str
    name: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Precision:
    """One way to hold the weights, and the bytes of memory that takes."""

    name: str
    engine: str
    memory: str
    share: float
    fit: Fit
    chosen: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One generation parameter: as we call it, as the configuration files call it, and its range."""

    name: str
    yaml: str
    label: str
    hint: str
    min: float
    max: float
    step: float


PARAMETERS: Final = (
    Parameter("temperature", "temperature", "Temperature", "0 is always the same, 1 is lively", 0, 5, 0.05),
    Parameter("max_tokens", "max_new_tokens", "Max tokens", "longest answer", 1, 1_000_000, 1),
    Parameter("top_p", "top_p", "Top p", "likeliest share kept", 0.01, 1, 0.01),
    Parameter("top_k", "top_k", "Top k", "likeliest tokens kept, 0 is off", 0, 100_000, 1),
    Parameter("min_p", "min_p", "Min p", "floor, relative to the best", 0, 1, 0.01),
    Parameter("repetition_penalty", "repetition_penalty", "Repetition penalty", "1 is off", 0.01, 5, 0.01),
)


@dataclass(frozen=True, slots=True)
class ReviewView:
    """Everything the review page shows."""

    card: ModelCardView
    origins: Sequence[Origin]
    precisions: Sequence[Precision]
    machine: str
    family: Family
    parameters: Sequence[Parameter]
    defaults: dict[str, object]


def review_of(
    each: ModelCard, card: ModelCardView, family: Family, machine: Machine, defaults: Sampling
) -> ReviewView:
    """What there is to say of a model."""
    return ReviewView(
        card=card,
        origins=origins_of(each.model),
        precisions=_precisions(each, machine),
        machine=machine.said(),
        family=family,
        parameters=PARAMETERS,
        defaults=defaults.as_dict(),
    )


def origins_of(model: Model) -> list[Origin]:
    """Every repository a model is made of, with its address."""
    origins: list[Origin] = []
    match model.weights:
        case HubWeights(repo=repo, file=file):
            origins.append(Origin("GGUF file", f"{repo}/{file}", f"{_HUB}{repo}"))
        case WheelWeights(distribution=name, version=version):
            origins.append(Origin("GGUF file", f"{name} {version} on the package registry"))
        case _:
            pass
    if model.checkpoint:
        origins += _checkpoint(model.checkpoint, model.adapters)
    if model.url and all(origin.url != model.url for origin in origins):
        origins.append(Origin("Model card", model.url.removeprefix(_HUB), model.url))
    return origins


def _checkpoint(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Iterator[Origin]:
    yield _repository("Base checkpoint" if adapters else "Checkpoint", checkpoint)
    if checkpoint.living_copy:
        yield Origin("Living copy", checkpoint.living_copy, f"{_HUB}{checkpoint.living_copy}")
    for adapter in adapters:
        yield _repository("LoRA adapter", adapter)


def _repository(what: str, part: Checkpoint | Adapter) -> Origin:
    return Origin(what, part.where, f"{_HUB}{part.repo}" if part.repo else "")


def _precisions(each: ModelCard, machine: Machine) -> list[Precision]:
    if each.memory is None:
        return []
    return [
        Precision(
            each.model.quantization or "as it is",
            "llama.cpp",
            size(each.memory),
            machine.share(each.memory),
            machine.fit(each.memory),
            chosen=True,
        )
    ]
