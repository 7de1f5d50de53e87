"""The review page of one model: where it comes from, what it needs, how it will answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rallychat.catalog import Family, Model, Sampling
from rallychat.catalog.generation import written
from rallychat.catalog.types import Adapter, Checkpoint, HubWeights, WheelWeights
from rallychat.ui.context_view import Stretch
from rallychat.ui.model_view import ModelCardView
from rallychat.ui.ways import Way

_HUB: Final = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something of a model comes from; `url` is empty if it is nowhere on the web."""

    what: str
    name: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One generation parameter: as we call it, as generation configs call it, and its range."""

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
class Generation:
    """One generation config as it can be edited: what was chosen, and what is in force with it."""

    part: str
    title: str
    about: str
    chosen: Mapping[str, Any]
    in_force: Mapping[str, Any]
    yaml: str


@dataclass(frozen=True, slots=True)
class ReviewView:
    """Everything the review page shows. `editable`: whoever looks may change it."""

    card: ModelCardView
    origins: Sequence[Origin]
    ways: Sequence[Way]
    automatic: bool
    gpus: int
    multi_gpu: bool
    machine: str
    family: Family
    preview: Sequence[Stretch]
    parameters: Sequence[Parameter]
    generations: Sequence[Generation]
    summary_prompt: str
    usual_summary_prompt: str
    examples: Sequence[str]
    editable: bool


def generation_of(part: str, chosen: Sampling, in_force: Sampling) -> Generation:
    """The generation config for answers, or for summaries."""
    title, about = {
        "answer": ("Answers", "How this model answers in every conversation that does not say otherwise."),
        "summary": (
            "Summaries",
            "How it shortens the older part of a conversation, where a strategy asks it to.",
        ),
    }[part]
    return Generation(part, title, about, chosen.as_dict(), in_force.as_dict(), written(in_force))


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
