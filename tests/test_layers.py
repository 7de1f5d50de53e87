"""Imports go one way: a module uses only what is above it in `LAYERS`. Read by AST, so lazy imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rallychat

PACKAGE = Path(rallychat.__file__).parent

LAYERS: dict[str, int] = {
    "disk": 0, "errors": 0, "identity": 0, "logs": 0, "messages": 0, "settings": 0, "signals": 0, "tracing": 1,
    "garbage": 0, "texts": 0, "recent": 0, "unset": 0,
    "catalog": 1,
    "choices": 2, "prompts": 2, "parsing": 2, "context": 2, "store": 2,
    "accounts": 3, "sources": 3, "transfer": 3,
    "engines": 4,
    "pool": 5,
    "allowance": 6, "answering": 6, "asides": 6, "compacting": 6, "idle": 6, "riding": 6, "latency": 6, "titles": 6,
    "cards": 6, "basis": 6, "recall": 6, "reporting": 6, "following": 6, "wishes": 6, "turns": 6,
    "chat": 6, "stateless": 6, "contexts": 6, "metrics": 6, "planning": 6, "recording": 6,
    "responding": 6, "retention": 6, "runs": 6, "shelf": 6, "templates": 6,
    "batches": 7,
    "api": 8, "ui": 8,
    "bench": 9, "cli": 9, "__main__": 9,
}  # fmt: skip
"""Higher number, lower floor: a module uses its own floor and those above, and no two use each other."""

FOREIGN = {
    "gradio": {"ui", "bench"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "asyncpg": {"store"},
    "argon2": {"accounts"},
    "authlib": {"accounts"},
    "joserfc": {"accounts"},
    "fastapi": {"api", "ui", "cli"},
    "jinja2": {"prompts", "ui"},
    "latex2mathml": {"ui"},
    "xllamacpp": {"engines", "bench", "cli"},
    "huggingface_hub": {"sources"},
    "typer": {"cli"},
    "prompt_toolkit": {"cli"},
    "prometheus_client": {"metrics"},
    "python_multipart": {"api"},
    "PIL": {"bench"},
    "wordllama": {"context"},
    "numpy": {"context", "engines", "bench"},
    "pythonjsonlogger": {"logs"},
    "opentelemetry": {"tracing"},
    "torch": {"engines", "bench"},
    "transformers": {"engines", "bench"},
    "tokenizers": {"engines", "bench"},
    "peft": {"engines", "bench"},
    "torchao": {"engines"},
    "bitsandbytes": {"engines"},
    "triton": {"engines"},
}
"""Libraries, and the only subjects that may know them."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def subject(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names imported anywhere in a module, and whether the import is for the type checker only."""
    package = ("rallychat", *path.relative_to(PACKAGE).with_suffix("").parts)[:-1]
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), package, typing_only=False)


def _imports(node: ast.AST, package: tuple[str, ...], *, typing_only: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = list(package[: len(package) - child.level + 1]) if child.level else []
            name = ".".join([*base, *([child.module] if child.module else [])])
            yield from ((f"{name}.{alias.name}", typing_only) for alias in child.names)
        else:
            guarded = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from _imports(child, package, typing_only=typing_only or guarded)


def subjects_used(path: Path) -> set[str]:
    """The other subjects of this package that a module imports."""
    used = {name.split(".")[1] for name, _ in imports(path) if name.startswith("rallychat.")}
    return (used & set(LAYERS)) - {subject(path)}


def test_every_subject_has_a_layer() -> None:
    assert {subject(path) for path in modules()} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_nothing_of_a_lower_layer(path: Path) -> None:
    own = LAYERS[subject(path)]
    assert {other for other in subjects_used(path) if LAYERS[other] > own} == set()


def test_no_two_subjects_need_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in LAYERS}
    for path in modules():
        graph[subject(path)] |= subjects_used(path)
    assert len(list(TopologicalSorter(graph).static_order())) == len(LAYERS)  # a cycle raises CycleError


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_heavy_library_is_known_to_its_own_subject_only(path: Path) -> None:
    known = [
        name
        for name, typing_only in imports(path)
        if not typing_only and (top := name.split(".")[0]) in FOREIGN and subject(path) not in FOREIGN[top]
    ]
    assert known == []


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\ndef f():\n    from . import g\n"
    found = list(_imports(ast.parse(source), ("rallychat", "x"), typing_only=False))
    assert found == [("a.b", False), ("c.d", False), ("e", True), ("rallychat.x.g", False)]


def test_a_worker_pays_for_nothing_it_does_not_use() -> None:
    found = loaded_by("import rallychat.engines.worker")
    assert found & {"gradio", "sqlalchemy", "fastapi", "typer", "rich", "huggingface_hub", "jinja2"} == set()


def test_help_loads_no_heavy_library() -> None:
    found = loaded_by("import rallychat.cli")
    heavy = {"gradio", "sqlalchemy", "fastapi", "pydantic", "xllamacpp", "prompt_toolkit", "httpx"}
    assert found & heavy == set()


def loaded_by(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after `code`."""
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.split())
