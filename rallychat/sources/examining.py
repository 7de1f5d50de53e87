"""Looks at a repository before anything of it is downloaded: what could not run here, or not safely, is refused."""

from __future__ import annotations

import logging
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
from rallychat.catalog.safetensors import header
from rallychat.catalog.types import Adapter, Checkpoint, Model
from rallychat.errors import Gated, SourceMissing, Unsupported
from rallychat.settings import Settings
from rallychat.sources.repository import Repository, look_at

logger = logging.getLogger(__name__)


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
    found = shown(part, token)
    what = Said(found.read)
    needed = ADAPTER_CONFIG if isinstance(part, Adapter) else CONFIG
    if needed not in found.files:
        kind = "adapter" if isinstance(part, Adapter) else "checkpoint"
        raise Unsupported(f"{part.repo} holds no {kind}: it has no {needed}.")
    refuse_pickles(found)
    code = code_allowed(model, settings)
    if isinstance(part, Checkpoint):
        architectures.check(part.repo, what, code_allowed=code)
    else:
        refuse_kind(part.repo, what)
    return Order(part, found, tuple(wanted(found.files, code=code)))


def shown(part: Checkpoint | Adapter, token: str | None) -> Repository:
    """The repository; where it has left the hub or holds pickles only, the copy that the model's file names.

    Raises:
        SourceError: the hub shows neither.
    """
    copy = part.living_copy if isinstance(part, Checkpoint) else ""
    try:
        found = look_at(part.repo, revision=part.revision, token=token)
        if not copy or weights(found.files):
            return found
        why = "it holds pickles only"
    except (SourceMissing, Gated) as exc:
        if not copy:
            raise
        why = exc.message
    logger.warning("%s cannot be used, but its copy %s can: %s", part.repo, copy, why)
    return look_at(copy, token=token)


def refuse_kind(repo: str, adapter: Said) -> None:
    """Refuses adapters that are not LoRA.

    Raises:
        Unsupported: it is of another kind.
    """
    if (kind := adapter.adapter.get("peft_type", "LORA")) != "LORA":
        raise Unsupported(f"The adapter {repo} is of the kind {kind}; only LoRA adapters can be used.")


def refuse_pickles(found: Repository) -> None:
    """Refuses a repository without safetensors, and says what to do instead. Pickles of tensors can be converted.

    Raises:
        Unsupported: its weights are pickles.
        SourceMissing: it has no weights.
    """
    if weights(found.files) or pickled(found.files):
        return
    if not (unsafe := pickles(found.files)):
        raise SourceMissing(f"{found.repo} holds no weights in the safetensors format.")
    raise Unsupported(
        f"{found.repo} holds its weights as pickles only ({unsafe[0]}), which can run code when they are loaded.",
        hint="name a copy in the safetensors format with --base-url, or convert it: "
        "https://huggingface.co/spaces/safetensors/convert",
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
