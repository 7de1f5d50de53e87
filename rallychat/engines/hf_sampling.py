"""The next token of many rows at once, on their device; one look at the device per step.

The order is vLLM's, which model cards' values are meant for: penalty, temperature, min_p, top_k, top_p. Each row draws
from a generator of its own, so a seed gives the same answer alone and among others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from rallychat.engines.protocol import CompletionRequest

_FEW: Final = 1024
"""Candidates looked at first on a CPU, where sorting a vocabulary for each token costs as much as a small model."""


@dataclass(slots=True)
class Wish:
    """How one answer chooses its tokens."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    penalty: float
    banned: tuple[int, ...]
    """Tokens that may not come: the ends, if they are to be ignored."""
    seen: list[int]
    """The tokens so far; kept only where they are penalised."""
    random: random.Random = field(default_factory=random.Random)

    @classmethod
    def of(cls, request: CompletionRequest, ends: frozenset[int]) -> Wish:
        """What `request` asks for."""
        return cls(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            penalty=request.repetition_penalty,
            banned=tuple(ends) if request.ignore_eos else (),
            seen=list(request.prompt) if request.repetition_penalty != 1 else [],
            random=random.Random(request.seed),  # noqa: S311 - not for secrets
        )


def choose(logits: Any, wishes: Sequence[Wish]) -> list[int]:
    """The next token of each row of `logits` [rows, vocabulary], which are changed: the next step writes its own."""
    logits = logits.float()
    for row, wish in enumerate(wishes):
        if wish.penalty != 1:
            _penalise(logits, row, wish)
        if wish.banned:
            logits[row, list(wish.banned)] = -torch.inf
    best = logits.argmax(-1)
    warm = [row for row, wish in enumerate(wishes) if wish.temperature > 0]
    if warm:
        rows = torch.tensor(warm, device=logits.device)
        best[rows] = _draw(logits[rows], [wishes[row] for row in warm])
    tokens: list[int] = best.tolist()
    for wish, token in zip(wishes, tokens, strict=True):
        if wish.penalty != 1:
            wish.seen.append(token)
    return tokens


def _penalise(logits: Any, row: int, wish: Wish) -> None:
    seen = torch.tensor(wish.seen, device=logits.device)
    scores = logits[row, seen]
    logits[row, seen] = torch.where(scores < 0, scores * wish.penalty, scores / wish.penalty)


def _draw(logits: Any, wishes: Sequence[Wish]) -> Any:
    device = logits.device

    def column(values: list[float]) -> Any:
        return torch.tensor(values, device=device)[:, None]

    weights = torch.softmax(logits / column([wish.temperature for wish in wishes]), -1)
    if any(wish.min_p for wish in wishes):
        least = weights.amax(-1, keepdim=True) * column([wish.min_p for wish in wishes])
        weights = weights.masked_fill(weights < least, 0)
    luck = column([wish.random.random() for wish in wishes])
    if not any(wish.top_k or wish.top_p < 1 for wish in wishes):
        return _pick(weights, luck)[:, 0]
    ranked, tokens = _ranked(weights, wishes)
    places = torch.arange(ranked.shape[-1], device=device)
    most = column([wish.top_k or ranked.shape[-1] for wish in wishes])
    ranked = ranked.masked_fill(places >= most, 0)
    limited = column([wish.top_k for wish in wishes]) > 0
    total = torch.where(limited, ranked.sum(-1, keepdim=True), weights.sum(-1, keepdim=True))
    before = ranked.cumsum(-1) - ranked
    allowed = column([wish.top_p for wish in wishes]) * total
    ranked = ranked.masked_fill(before >= allowed, 0)
    return tokens.gather(-1, _pick(ranked, luck))[:, 0]


def _ranked(weights: Any, wishes: Sequence[Wish]) -> tuple[Any, Any]:
    """Weights and tokens, the heaviest first; of a CPU's only as many as can matter."""
    every = weights.shape[-1]
    if weights.device.type == "cpu" and every > _FEW and all(wish.top_k <= _FEW for wish in wishes):
        found = weights.topk(_FEW)
        total = weights.sum(-1)
        needed = torch.tensor([0.0 if wish.top_k else wish.top_p for wish in wishes])
        if bool((found.values.sum(-1) >= needed * total).all()) and all(
            wish.top_k or wish.top_p < 1 for wish in wishes
        ):
            return found.values, found.indices
    ranked, tokens = weights.sort(-1, descending=True)
    return ranked, tokens


def _pick(weights: Any, luck: Any) -> Any:
    """The place at which the running sum passes `luck` of the whole: [rows, 1]."""
    sums = weights.cumsum(-1)
    place = torch.searchsorted(sums, luck * sums[:, -1:], right=True)
    last = (
        (weights > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    )  # rounding may point behind the last candidate
    return torch.minimum(place, last)
