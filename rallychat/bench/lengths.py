"""How many tokens texts have, by the tokenizer of the default model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rallychat.bench.folders import apart
from rallychat.chat import ChatService
from rallychat.engines.protocol import Piece
from rallychat.settings import Settings

AT_ONCE = 500
"""Texts sent to the tokenizer at a time."""


async def lengths(settings: Settings, texts: Iterable[str]) -> dict[str, int] | None:
    """Tokens of each text, without what a template adds; None where the model's weights are not here."""
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        return await _counted(apart(settings, Path(made)), sorted(set(texts)))


async def _counted(settings: Settings, every: Sequence[str]) -> dict[str, int] | None:
    known = dict[str, int]()
    async with ChatService.open(settings) as service:
        model = service.resolve(None)
        if not service.is_here(model):
            return None
        engine = await service.pool.open(model)
        for start in range(0, len(every), AT_ONCE):
            some = every[start : start + AT_ONCE]
            ids = await engine.client.tokenize([Piece(text, special=False) for text in some])
            known |= dict(zip(some, map(len, ids), strict=True))
    return known
