"""The tables of families and models in the docs."""

from __future__ import annotations

from pathlib import Path

from rallychat.catalog import Catalog, Family, Model
from rallychat.templates import of_family

DOCS = Path(__file__).parent.parent.parent / "docs"
BEGIN, END = "<!-- written by `python -m tests.golden` -->\n", "<!-- end -->\n"
FAMILIES = ("family", "name", "system prompt", "memory", "ends at", "window", "thinks", "tools", "models")
MODELS = ("model", "parameters", "family", "window", "licence", "GGUF", "checkpoint", "adapter")


def pages(catalog: Catalog) -> dict[Path, str]:
    """The pages with today's tables in them."""
    families = [_family(family, catalog) for family in sorted(catalog.families.values(), key=lambda f: f.id)]
    models = [_model(model) for model in catalog.models.values() if not model.hidden]
    return {
        DOCS / "families.md": _with_table(DOCS / "families.md", FAMILIES, families),
        DOCS / "models.md": _with_table(DOCS / "models.md", MODELS, models),
    }


def _with_table(page: Path, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [head, ("---",) * len(head), *rows]
    return before + BEGIN + "".join(f"| {' | '.join(line)} |\n" for line in lines) + END + after


def _model(model: Model) -> tuple[str, ...]:
    checkpoint = model.checkpoint
    packed = getattr(model.weights, "repo", getattr(model.weights, "distribution", ""))
    return (
        f"`{model.id}`",
        model.parameters,
        f"`{model.family}`",
        f"{model.window:,}",
        model.license,
        f"{packed} ({model.quantization})" if packed else "",
        (checkpoint.living_copy or checkpoint.repo) if checkpoint else "",
        ", ".join(adapter.repo for adapter in model.adapters),
    )


def _family(family: Family, catalog: Catalog) -> tuple[str, ...]:
    models = sum(model.family == family.id and not model.hidden for model in catalog.models.values())
    ends = dict.fromkeys((*family.stop_tokens, *family.stop))
    return (
        f"`{family.id}`",
        family.name,
        _system(family),
        _memory(family),
        " ".join(f"`{end}`".replace("|", "\\|").replace("\n", "\\n") for end in ends),
        f"{family.window:,}" if family.window else "",
        "yes" if family.reasoning else "",
        f"`{family.tools.call}`" if family.tools else "",
        str(models) if models else "",
    )


def _system(family: Family) -> str:
    if not family.template:
        return "as shipped"
    return "yes" if of_family(family).takes_system else "before the first text"


def _memory(family: Family) -> str:
    if family.memory.place == "template":
        return "a place of its own"
    first = family.memory.place == "preamble" or (family.template and not of_family(family).takes_system)
    return "before the first text" if first else "after the system prompt"
