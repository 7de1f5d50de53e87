"""Which chat template a model uses: the one shipped with its weights, or its family's."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path

from rallychat.catalog import Family, Model
from rallychat.catalog.gguf import GGUF, read_gguf
from rallychat.catalog.repository import Said
from rallychat.engines.protocol import EngineInfo
from rallychat.errors import NotFound, TemplateError
from rallychat.pool import Pool
from rallychat.prompts import PromptTemplate

Says = EngineInfo | GGUF | Said
"""What weights say of themselves: through their engine, in a GGUF file's header, or in a checkpoint's small files."""


def choose(model: Model, family: Family, says: Says) -> PromptTemplate:
    """The template for a model whose weights say this.

    Raises:
        TemplateError: neither weights nor family have one.
    """
    shipped = model.template or says.chat_template or ""
    source = shipped if shipped and (family.prefer_shipped or not family.template) else family.template
    if not source:
        raise TemplateError(
            f"'{model.id}' ships no chat template, and its family '{family.id}' has none.",
            hint="name a family for it in the catalog",
        )
    return of_family(
        family,
        source,
        bos_token=says.bos_token,
        eos_token=says.eos_token,
        control_tokens=says.control_tokens,
    )


async def of_model(model: Model, family: Family, path: Path, pool: Pool) -> PromptTemplate:
    """The template for a model that may not be loaded: from its engine, else from what its weights say."""
    engine = pool.find(model.id)
    if engine is not None and engine.state == "loaded":
        return choose(model, family, engine.info)
    if model.engine == "echo":
        return choose(model, family, (await pool.open(model)).info)
    if not await asyncio.to_thread(path.exists):
        if family.template and (not family.prefer_shipped or model.template == family.template):
            return choose(model, family, Said(lambda _: None))
        raise NotFound("weights file", str(path), hint=f"fetch it with: rallychat models download {model.id}")
    return await asyncio.to_thread(_of_files, model, family, path)


def _of_files(model: Model, family: Family, path: Path) -> PromptTemplate:
    return choose(model, family, Said.of(path) if model.engine == "transformers" else read_gguf(path))


@lru_cache(maxsize=64)
def of_family(
    family: Family,
    source: str = "",
    *,
    bos_token: str = "",
    eos_token: str = "",
    control_tokens: tuple[str, ...] = (),
) -> PromptTemplate:
    """The template of a family (`source`: another one that its models ship), with what the weights say."""
    own = not source or source == family.template
    return PromptTemplate(
        source or family.template,
        bos_token=family.bos_token or bos_token,
        eos_token=family.eos_token or eos_token,
        control_tokens=(*control_tokens, *family.special_tokens),
        memory=family.memory,
        takes_system=family.takes_system if own else None,
        reasoning=family.reasoning,
    )
