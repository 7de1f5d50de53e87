"""The ways a model can be run: its GGUF file, or its checkpoint in one precision, and the memory each takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rallychat.catalog import Model
from rallychat.catalog.precision import PRECISIONS, Precision, choose_precision
from rallychat.catalog.sizing import cache_size, needed_memory, slot_window
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
    """Every way to run `model`, small files first. `would_run` marks the one that loading it now would take."""
    chosen = _value(choice)
    now = _now(model, choice, settings, machine)
    found: list[Way] = []
    if model.weights is not None and model.engine != "echo":
        packed = model.model_copy(update={"engine": "llamacpp"})
        found.append(_way("llamacpp", packed, needed_memory(packed, settings), machine, chosen, now))
    if model.checkpoint is not None:
        found += _checkpoint(model, choice, settings, machine, chosen, now)
    return found


def choice_of(value: str, given: Choice) -> Choice:
    """`given` with the way that is called `value`."""
    engine, _, precision = value.partition(":")
    update: dict[str, Any] = {"engine": engine, "dtype": "auto", "quantize": "auto"}
    if precision in ("int8", "int4"):
        update["quantize"] = precision
    elif precision not in ("", "auto"):
        update.update(dtype=precision, quantize="none")
    return Choice.model_validate({**given.model_dump(), **update})


def _checkpoint(
    model: Model, choice: Choice, settings: Settings, machine: Machine, chosen: str, now: str
) -> Iterator[Way]:
    loaded = model.model_copy(update={"engine": "transformers"})
    for name in PRECISIONS:
        refusal = _NO_FLOAT16 if name == "float16" and machine.compute.device == "cpu" else ""
        needed = _needed(loaded, settings, machine, name)
        value = f"transformers:{name}"
        multi = bool(settings.multi_gpu if choice.multi_gpu is None else choice.multi_gpu)
        yield _way(value, loaded, needed, machine, chosen, now, name=name, refusal=refusal, multi_gpu=multi)


def _way(
    value: str,
    model: Model,
    needed: int | None,
    machine: Machine,
    chosen: str,
    now: str,
    *,
    name: str = "",
    refusal: str = "",
    multi_gpu: bool = False,
) -> Way:
    room = machine.room(model, multi_gpu=multi_gpu)
    return Way(
        value=value,
        name=name or model.quantization or "as it is",
        engine="Checkpoint" if model.engine == "transformers" else "GGUF",
        memory=size(needed) if needed else "not known",
        share=share(needed, room),
        fit=fit(needed, room),
        chosen=value == chosen,
        would_run=value == now,
        refusal=refusal,
    )


def _value(choice: Choice) -> str:
    precision = choice.quantize if choice.quantize in ("int8", "int4") else choice.dtype
    if choice.engine == "auto" and precision == "auto":
        return AUTO
    return "llamacpp" if choice.engine == "llamacpp" else f"transformers:{precision}"


def _now(model: Model, choice: Choice, settings: Settings, machine: Machine) -> str:
    """The value of the way that loading it now would take."""
    if model.engine != "transformers":
        return "llamacpp"
    count = _parameters(model)
    if count is None:
        return ""
    picked = choose_precision(
        count,
        machine.compute,
        cache=_cache(model, settings),
        dtype=settings.dtype if choice.dtype == "auto" else choice.dtype,
        quantize=settings.quantize if choice.quantize == "auto" else choice.quantize,
        multi_gpu=bool(settings.multi_gpu if choice.multi_gpu is None else choice.multi_gpu),
    )
    return f"transformers:{picked.precision}"


def _needed(model: Model, settings: Settings, machine: Machine, name: Precision) -> int | None:
    count = _parameters(model)
    if count is None:
        return None
    cache = _cache(model, settings)
    if name == "int8" or name == "int4":
        return choose_precision(count, machine.compute, cache=cache, quantize=name).needed
    return choose_precision(count, machine.compute, cache=cache, dtype=name, quantize="none").needed


def _cache(model: Model, settings: Settings) -> int:
    return cache_size(model, settings, slot_window(model, settings))


def _parameters(model: Model) -> int | None:
    """Their number; where nobody counted them, from the size of weights at 16 bits."""
    assert model.checkpoint is not None
    if model.checkpoint.parameters:
        return model.checkpoint.parameters
    return model.checkpoint.size // 2 if model.checkpoint.size else None
