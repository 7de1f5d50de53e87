"""`rallychat models`: the catalog and the weights on this machine. Starts no engine, and opens a database only to
note in its audit log what was fetched or removed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from rallychat import sources
from rallychat.catalog import Catalog, Model
from rallychat.catalog.sizing import memory_by_precision, needed_memory, precision
from rallychat.cli.options import literal
from rallychat.cli.progress import fetch_with_bar
from rallychat.cli.running import run
from rallychat.cli.whose import noted_here
from rallychat.errors import InvalidRequest
from rallychat.settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """A model as a line of the list. Sizes in bytes; `here`: its weights are on this machine."""

    model: Model
    memory: int | None
    here: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = self.model.model_dump(
            include={
                "id",
                "name",
                "family",
                "engine",
                "parameters",
                "quantization",
                "license",
                "window",
                "description",
            }
        )
        return {**facts, "size": self.model.size, "memory": self.memory, "state": self.state}

    @property
    def state(self) -> str:
        """ "ready" or "absent", as the API says it."""
        return "ready" if self.here else "absent"


def rows(catalog: Catalog, settings: Settings, *, everything: bool = False) -> list[Row]:
    """Every model of the menu, smallest first; with `everything` also those that are not in it."""
    shown = [model for model in catalog.models.values() if everything or not model.hidden]
    return [row(model, settings) for model in shown]


def row(model: Model, settings: Settings) -> Row:
    """One model's line."""
    return Row(model, needed_memory(model, settings), sources.is_here(model, settings))


def list_models(settings: Settings, *, everything: bool, as_json: bool) -> None:
    """Print the list."""
    found = rows(Catalog.load(settings), settings, everything=everything)
    if as_json:
        print(json.dumps([each.as_dict() for each in found], ensure_ascii=False, indent=2))
        return
    table = Table("id", "parameters", "download", "memory", "licence", "here", box=None, pad_edge=False)
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    table.columns[0].no_wrap = True
    for each in found:
        default = " [dim](default)[/]" if each.model.id == settings.model else ""
        table.add_row(
            f"[bold]{literal(each.model.id)}[/]{default}",
            each.model.parameters,
            size(each.model.size),
            size(each.memory),
            literal(each.model.license),
            "[green]yes[/]" if each.here else "-",
        )
    console = Console()
    console.print(table)
    console.print(
        "[dim]Any GGUF file, checkpoint or LoRA adapter works too: a path here, or owner/repo of the hub.[/]"
    )


def show_model(settings: Settings, name: str, *, as_json: bool) -> None:
    """Print what is known of one model.

    Raises:
        NotFound: there is none of this name.
    """
    model = sources.resolve(name, Catalog.load(settings), settings, family=settings.family)
    facts = {
        **row(model, settings).as_dict(),
        "url": model.url,
        "weights": _where(model),
        **_checkpoint(model, settings),
        "path": str(sources.weights_path(model, settings)),
        "sampling": model.sampling.value().as_dict(),
        "examples": list(model.examples),
    }
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    table = Table.grid(padding=(0, 3))
    for key, value in facts.items():
        text = size(value) if key in ("size", "memory") and isinstance(value, int) else _plain(value)
        if text:
            table.add_row(f"[dim]{key}[/]", literal(text))
    Console().print(table)


def download_model(settings: Settings, name: str, *, force: bool = False) -> None:
    """Fetch a model's weights, with a progress bar.

    Raises:
        SourceError: they could not be fetched.
    """
    console = Console(stderr=True)
    model = sources.resolve(name, Catalog.load(settings), settings, family=settings.family)
    if sources.is_here(model, settings) and not force:
        console.print(f"{literal(model.name)} is here already.")
        return

    async def fetch() -> None:
        downloads = sources.Downloads(settings)
        try:
            await fetch_with_bar(downloads, model, settings, console, force=force)
        finally:
            await downloads.aclose()
        await noted_here(settings, "model.download", model.id)

    run(fetch())
    console.print(f"{literal(model.name)} is here: {literal(str(sources.weights_path(model, settings)))}")


def remove_model(settings: Settings, name: str, *, sure: bool) -> None:
    """Delete a model's weights, after asking.

    Raises:
        InvalidRequest: they are not here.
    """
    model = Catalog.load(settings).resolve(name)
    if not sources.is_here(model, settings):
        raise InvalidRequest(f"The weights of {model.name} are not on this machine.")
    path = sources.weights_path(model, settings)
    if not sure and not typer.confirm(f"Delete {path}?", err=True):
        raise typer.Exit(1)
    freed = sources.remove(model, settings)
    run(noted_here(settings, "model.remove", model.id))
    Console(stderr=True).print(f"Removed {literal(model.name)}; {size(freed)} are free again.")


def size(count: int | None) -> str:
    """Bytes as people read them: 98 MB, 2.5 GB."""
    if count is None:
        return ""
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB"


def _checkpoint(model: Model, settings: Settings) -> dict[str, Any]:
    """What a checkpoint takes in each precision, how it would be loaded here, and the copy that is alive."""
    if model.checkpoint is None:
        return {}
    chosen = precision(model, settings) if model.engine == "transformers" else None
    memory = memory_by_precision(model, settings)
    return {
        "checkpoint": model.checkpoint.model_dump(exclude_defaults=True, exclude={"adapters"}),
        "memory_by_precision": {name: size(needed) for name, needed in memory.items()},
        "precision_here": chosen.precision if chosen else None,
        "adapters": [adapter.where for adapter in model.adapters],
    }


def _where(model: Model) -> dict[str, Any]:
    """Where what runs comes from."""
    return model.weights.model_dump(exclude_none=True) if model.weights else {}


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "\n".join(_plain(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value) if value is not None else ""
