"""Looks at a repository before anything of it is downloaded: what could not run here, or not safely, is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rallychat.catalog import architectures
from rallychat.catalog.engines import code_allowed
from rallychat.catalog.repository import (
    ADAPTER_CONFIG,
    CONFIG,
    Said,
    pickled,
    pickles,
    wanted,
    weights,
)
from rallychat.catalog.types import Adapter, Checkpoint, Model
from rallychat.errors import SourceMissing, Unsupported
from rallychat.settings import Settings
from rallychat.sources.repository import Repository, look_at
from rallychat.sources.safetensors import header


@dataclass(frozen=True)
class Order:
    """One repository that is wanted, and those of its files that are."""

    part: Checkpoint | Adapter
    repository: Repository
    names: tuple[str, ...]

    def label(self, name: str) -> str:
        """A file's name among those of several repositories."""
        return f"{self.part.name}/{name}" if isinstance(self.part, Adapter) else name


def examine(model: Model, part: Checkpoint | Adapter, settings: Settings, token: str | None) -> Order:
    """Look at a repository, and refuse it if it could not be used.

    Raises:
        Unsupported: pickled weights only, an architecture nobody here knows, or code of its own.
        SourceError: the hub does not show it.
    """
    found = look_at(part.repo, revision=part.revision, token=token)
    what = Said(found.read)
    needed = ADAPTER_CONFIG if isinstance(part, Adapter) else CONFIG
    if needed not in found.files:
        kind = "adapter" if isinstance(part, Adapter) else "checkpoint"
        raise Unsupported(f"{part.repo} holds no {kind}: it has no {needed}.")
    refuse_pickles(part, found)
    code = code_allowed(model, settings)
    if isinstance(part, Checkpoint):
        architectures.check(part.repo, what, code_allowed=code)
    elif (kind := what.adapter.get("peft_type", "LORA")) != "LORA":
        raise Unsupported(f"The adapter {part.repo} is of the kind {kind}; only LoRA adapters can be used.")
    return Order(part, found, tuple(wanted(found.files, code=code)))


def refuse_pickles(part: Checkpoint | Adapter, found: Repository) -> None:
    """Refuses a repository without safetensors, and says what to do instead. Pickles of tensors can be converted.

    Raises:
        Unsupported: its weights are pickles.
        SourceMissing: it has no weights.
    """
    copy = part.living_copy if isinstance(part, Checkpoint) else ""
    if weights(found.files) or (pickled(found.files) and not copy):
        return
    if not (unsafe := pickles(found.files)):
        raise SourceMissing(f"{found.repo} holds no weights in the safetensors format.")
    instead = (
        f"use its copy {copy}: --base-url {copy}" if copy else "look for a copy in the safetensors format"
    )
    raise Unsupported(
        f"{found.repo} holds its weights as pickles only ({unsafe[0]}), which can run code when they are loaded.",
        hint=f"{instead}, or convert it: https://huggingface.co/spaces/safetensors/convert",
    )


def check_width(adapter: Path, name: str, base: Said, base_name: str) -> None:
    """Refuses an adapter whose matrices do not fit the base, before the base is downloaded.

    Raises:
        Unsupported: it was trained for a model of another size.
    """
    width = base.width
    shapes = header(adapter / "adapter_model.safetensors")
    widths = {shape[-1] for tensor, shape in shapes.items() if ".lora_A." in tensor and len(shape) == 2}
    if width and widths and width not in widths:
        raise Unsupported(
            f"The adapter {name} does not fit {base_name}: it was trained for a model whose layers are "
            f"{min(widths)} wide, not {width}.",
            hint="choose the base that the adapter's model card names",
        )
