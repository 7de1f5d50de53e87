"""Which architectures Hugging Face transformers can generate text with. Never imports it: that takes seconds.

The shipped list is that of the pinned version; a newer one that is installed is read as text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rallychat.catalog.repository import Said
from rallychat.errors import Unsupported

LIST: Final = Path(__file__).resolve().parent.parent / "data" / "architectures.json"
_TABLES: Final = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


UNPACKED: Final = ("bitsandbytes", "fp8", "mxfp4", "torchao")
"""Methods of quantised checkpoints that transformers opens with what `rallychat add hf` installs."""


def check(repo: str, said: Said, *, code_allowed: bool) -> None:
    """Refuses what could not be opened after the download.

    Raises:
        Unsupported: the architecture is unknown, or needs Python code of the checkpoint's own that is not allowed;
            or its weights are quantised in a way that needs more than is installed.
    """
    if said.packing and said.packing not in UNPACKED:
        raise Unsupported(
            f"The weights of {repo} are quantised by the method '{said.packing}', which cannot be read here.",
            hint="take the unquantised checkpoint with --quantize int8 or int4, or a GGUF file of the model",
        )
    if supported(said.architecture, said.kind) or (said.own_code and code_allowed):
        return
    name = said.architecture or said.kind
    if not name:
        raise Unsupported(f"{repo} does not say its architecture in config.json, so it cannot be opened.")
    if said.own_code:
        raise Unsupported(
            f"{repo} ({name}) runs only with Python code of its own, which RallyChat does not run unasked.",
            hint=f"if you trust its authors, say --remote-code {repo}",
        )
    raise Unsupported(
        f"{repo} has the architecture {name}, which transformers cannot generate text with.",
        hint="nothing was downloaded; choose another model, or a newer transformers if it is a new architecture",
    )


def supported(architecture: str, kind: str) -> bool:
    """transformers opens this class; where a checkpoint names none, any of its kind."""
    return _is_in(shipped(), architecture, kind) or _is_in(installed(), architecture, kind)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, list[str]]:
    """Classes by kind, as RallyChat ships the list."""
    listed: dict[str, list[str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return listed


@lru_cache(maxsize=1)
def installed() -> Mapping[str, list[str]]:
    """Classes by kind, as the installed transformers has them; empty if there is none."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return {}
    try:
        source = (Path(package.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(
            encoding="utf-8"
        )
        return read_tables(source)
    except (OSError, SyntaxError, ValueError):  # of another make than this one knows
        return {}


def read_tables(source: str) -> dict[str, list[str]]:
    """The classes by kind in the text of transformers' `modeling_auto.py`."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and {ast.unparse(target) for target in node.targets} & _TABLES:
            for kind, classes in _pairs(node.value):
                found.setdefault(kind, set()).update(classes)
    return {kind: sorted(classes) for kind, classes in sorted(found.items())}


def _pairs(table: ast.expr) -> Iterator[tuple[str, list[str]]]:
    """The pairs of an `OrderedDict([("kind", "Class"), ...])`; a class may be a tuple of several."""
    listed = table.args[0] if isinstance(table, ast.Call) and table.args else None
    for pair in listed.elts if isinstance(listed, ast.List) else []:
        if isinstance(pair, ast.Tuple):
            kind, classes = ast.literal_eval(pair)
            yield kind, [classes] if isinstance(classes, str) else list(classes)


def _is_in(tables: Mapping[str, list[str]], architecture: str, kind: str) -> bool:
    if not architecture:
        return kind in tables
    # "LLaMAForCausalLM" and "MPTForCausalLM" are how the first checkpoints of their kinds spelled it
    folded = architecture.casefold()
    return any(folded == name.casefold() for classes in tables.values() for name in classes)
