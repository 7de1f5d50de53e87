"""The model menu's cards: what is known of a model, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rallychat.cards import ModelCard, ModelState
from rallychat.catalog import Family, Sampling
from rallychat.ui.views import size

_STATE_TEXT: Final[dict[ModelState, str]] = {
    "absent": "Not downloaded",
    "downloading": "Downloading",
    "ready": "On disk",
    "loading": "Loading",
    "loaded": "Ready",
    "unavailable": "Unavailable",
}
_USE_LABEL: Final[dict[ModelState, str]] = {
    "absent": "Download and use",
    "downloading": "Use when ready",
    "ready": "Use",
    "loading": "Use",
    "loaded": "Use",
    "unavailable": "Try again",
}
_STAGE_TEXT: Final = {"download": "Downloading", "unpack": "Unpacking", "verify": "Checking"}


@dataclass(frozen=True, slots=True)
class ModelCardView:
    """One card. `fraction` is 0..1 while something is fetched and its size is known."""

    id: str
    name: str
    description: str
    facts: tuple[tuple[str, str], ...]
    state: ModelState
    state_text: str
    use_label: str
    fraction: float | None
    note: str
    removable: bool


def view_of(card: ModelCard) -> ModelCardView:
    """A card as the menu shows it."""
    model = card.model
    facts = (
        ("Parameters", " ".join(filter(None, (model.parameters, model.quantization)))),
        ("Download", size(model.download_size) if model.download_size else ""),
        ("Memory", size(card.memory) if card.memory else ""),
        ("Window", f"{model.window:,} tokens"),
        ("Licence", model.license),
    )
    on_disk = card.state in ("ready", "loading", "loaded", "unavailable")
    return ModelCardView(
        id=model.id,
        name=model.name,
        description=model.description,
        facts=tuple(fact for fact in facts if fact[1]),
        state=card.state,
        state_text=_state_text(card),
        use_label=_USE_LABEL[card.state],
        fraction=card.progress.fraction if card.progress else None,
        note=card.note,
        removable=on_disk and model.fetched,
    )


def _state_text(card: ModelCard) -> str:
    if card.state != "downloading" or card.progress is None:
        return _STATE_TEXT[card.state]
    stage = _STAGE_TEXT[card.progress.stage]
    fraction = card.progress.fraction
    return stage if fraction is None else f"{stage} {fraction:.0%}"


def defaults_of(card: ModelCard, family: Family) -> dict[str, Any]:
    """The generation parameters in force where a person sets none, JSON-ready."""
    asked: Sampling = card.model.sampling.value().over(family.sampling.value())
    return asked.as_dict()
