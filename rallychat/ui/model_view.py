"""The model menu's cards: what is known of a model, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rallychat.cards import ModelCard, ModelState
from rallychat.catalog import Family, Model
from rallychat.sources.progress import FileProgress
from rallychat.ui.machine import Fit, Machine, fit
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
_ENGINES: Final = {"llamacpp": "GGUF", "transformers": "Checkpoint", "echo": "Built in"}
_SIZES: Final = (
    (1e9, "Small", "below 1B parameters"),
    (4.5e9, "Medium", "1B to 4B"),
    (10e9, "Large", "5B to 9B"),
    (25e9, "Very large", "10B to 24B"),
    (float("inf"), "Huge", "25B and more"),
)
_UNSIZED: Final = ("Others", "size not known")


@dataclass(frozen=True, slots=True)
class FileView:
    """One file of a download. `fraction` is 0..1, or None while its size is not known."""

    name: str
    amount: str
    fraction: float | None


@dataclass(frozen=True, slots=True)
class ModelCardView:
    """One card. `fraction` is 0..1 while something is fetched and its size is known."""

    id: str
    name: str
    family: str
    family_name: str
    engine: str
    description: str
    facts: tuple[tuple[str, str], ...]
    memory: str
    fit: Fit
    state: ModelState
    state_text: str
    use_label: str
    fraction: float | None
    amount: str
    """How much has come, in words."""
    files: Sequence[FileView]
    note: str
    removable: bool
    words: str
    """What a search looks through."""

    @property
    def here(self) -> bool:
        """Its weights are on this machine."""
        return self.state not in ("absent", "downloading")


@dataclass(frozen=True, slots=True)
class SizeGroup:
    """Models of about one size, small ones first."""

    name: str
    range: str
    cards: Sequence[ModelCardView]


@dataclass(frozen=True, slots=True)
class MenuView:
    """The landing page: every model by size, and the families one can choose from."""

    groups: Sequence[SizeGroup]
    families: Sequence[tuple[str, str]]
    machine: str
    count: int
    editable: bool
    """Whoever looks may bring models of their own."""


def menu_of(
    cards: Iterable[ModelCardView],
    machine: Machine,
    sizes: Mapping[str, int | None],
    *,
    editable: bool = False,
) -> MenuView:
    """The menu over `cards`; `sizes` has each model's number of parameters."""
    groups: dict[tuple[str, str], list[ModelCardView]] = {}
    shown = sorted(cards, key=lambda card: (sizes[card.id] is None, sizes[card.id] or 0, card.name))
    for card in shown:
        groups.setdefault(_group(sizes[card.id]), []).append(card)
    families = sorted({(card.family, card.family_name) for card in shown}, key=lambda family: family[1])
    return MenuView(
        [SizeGroup(name, span, listed) for (name, span), listed in groups.items()],
        families,
        machine.said(),
        len(shown),
        editable,
    )


def view_of(card: ModelCard, family: Family, machine: Machine) -> ModelCardView:
    """A card as the menu shows it."""
    model = card.model
    facts = (
        ("Parameters", " ".join(filter(None, (model.parameters, model.quantization)))),
        ("Download", download_size(model)),
        ("Window", f"{model.window:,} tokens"),
        ("Licence", model.license),
    )
    on_disk = card.state in ("ready", "loading", "loaded", "unavailable")
    return ModelCardView(
        id=model.id,
        name=model.name,
        family=family.id,
        family_name=family.name,
        engine=_ENGINES[model.engine],
        description=model.description,
        facts=tuple(fact for fact in facts if fact[1]),
        memory=size(card.memory) if card.memory else "",
        fit=fit(card.memory, machine.room(model)),
        state=card.state,
        state_text=_state_text(card),
        use_label=_USE_LABEL[card.state],
        fraction=card.progress.fraction if card.progress else None,
        amount=_amount(card.progress.done, card.progress.total) if card.progress else "",
        files=[_file(each) for each in card.progress.files] if card.progress else (),
        note=card.note,
        removable=on_disk and model.fetched,
        words=" ".join((model.name, model.id, family.name, model.license, model.description)).casefold(),
    )


def _file(each: FileProgress) -> FileView:
    fraction = min(1.0, each.done / each.total) if each.total else None
    return FileView(each.name, _amount(each.done, each.total), fraction)


def _amount(done: int, total: int | None) -> str:
    return f"{size(done)} of {size(total)}" if total else size(done)


def download_size(model: Model) -> str:
    """What has to come over the network, as a person reads it; empty if that is not known."""
    return size(model.download_size) if model.download_size else ""


def _group(parameters: float | None) -> tuple[str, str]:
    if parameters is None:
        return _UNSIZED
    return next((name, span) for below, name, span in _SIZES if parameters < below)


def _state_text(card: ModelCard) -> str:
    if card.state != "downloading" or card.progress is None:
        return _STATE_TEXT[card.state]
    stage = _STAGE_TEXT[card.progress.stage]
    fraction = card.progress.fraction
    return stage if fraction is None else f"{stage} {fraction:.0%}"
