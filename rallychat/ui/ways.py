"""The ways a model can be run: its GGUF file, or its checkpoint in one precision, and the memory each takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from rallychat.catalog import Model
from rallychat.catalog.precision import PRECISIONS
from rallychat.catalog.sizing import memory_by_precision, needed_memory, precision
from rallychat.choices import Choice
from rallychat.settings import Settings
from rallychat.ui.machine import Fit, Machine, fit, share
from rallychat.ui.views import size

AUTO: Final = "auto"
_NO_FLOAT16: Final = "float16 is not computed on CPUs"


@dataclass(frozen=True, slots=True)
class Way:
    """One way. `value` is what the page sends back for it; `refusal` says why it cannot be chosen here."""

    value: str
    name: str
    engine: str
    memory: str
    share: float
    fit: Fit
    chosen: bool
    would_run: bool
    refusal: str = ""


def ways_of(model: Model, choice: Choice, settings: Settings, machine: Machine) -> list[Way]:
    """Every way to run `model`, which has `choice` laid over it. `would_run` marks what loading it now would take."""
    chosen, now = _value(choice), _now(model, settings)
    found: list[Way] = []
    if model.weights is not None and model.engine != "echo":
        packed = model.run_by("llamacpp")
        memory = needed_memory(packed, settings)
        found.append(_way("llamacpp", packed, memory, machine.room(packed), chosen, now))
    if model.checkpoint is not None:
        loaded = model.run_by("transformers")
        multi_gpu = bool(model.options.get("multi_gpu", settings.multi_gpu))
        found += _checkpoint(
            loaded, settings, machine, machine.room(loaded, multi_gpu=multi_gpu), chosen, now
        )
    return found


def choice_of(value: str, given: Choice) -> Choice:
    """`given` with the way that is called `value`."""
    engine, _, exact = value.partition(":")
    update: dict[str, Any] = {"engine": engine, "dtype": AUTO, "quantize": AUTO}
    if exact in ("int8", "int4"):
        update["quantize"] = exact
    elif exact not in ("", AUTO):
        update.update(dtype=exact, quantize="none")
    return Choice.model_validate({**given.model_dump(), **update})


def _checkpoint(
    model: Model, settings: Settings, machine: Machine, room: int, chosen: str, now: str
) -> Iterator[Way]:
    needed = memory_by_precision(model, settings)
    for name in PRECISIONS:
        refusal = _NO_FLOAT16 if name == "float16" and machine.compute.device == "cpu" else ""
        way = _way(f"transformers:{name}", model, needed.get(name), room, chosen, now)
        yield replace(way, name=name, refusal=refusal)


def _way(value: str, model: Model, needed: int | None, room: int, chosen: str, now: str) -> Way:
    return Way(
        value=value,
        name=model.quantization or "as it is",
        engine="Checkpoint" if model.engine == "transformers" else "GGUF",
        memory=size(needed) if needed else "not known",
        share=share(needed, room),
        fit=fit(needed, room),
        chosen=value == chosen,
        would_run=value == now,
    )


def _value(choice: Choice) -> str:
    exact = choice.quantize if choice.quantize in ("int8", "int4") else choice.dtype
    if choice.engine == AUTO and exact == AUTO:
        return AUTO
    return "llamacpp" if choice.engine == "llamacpp" else f"transformers:{exact}"


def _now(model: Model, settings: Settings) -> str:
    """The value of the way that loading it now would take."""
    if model.engine != "transformers":
        return "llamacpp"
    picked = precision(model, settings)
    return f"transformers:{picked.precision}" if picked else ""
