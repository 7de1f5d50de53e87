"""Decoder-only models: what one step evaluates, for many answers in one forward pass.

`SlotDecoder` keeps all slots in one `SlotCache`; a model whose modules cannot use that (recurrent ones, positions made
from masks) is found out by `agrees` and runs in `TurnDecoder`, with a cache of its own kind per slot.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from rallychat.engines.hf_adapters import AdapterRows
from rallychat.engines.hf_cache import SlotCache, masks, padded
from rallychat.engines.hf_graphs import Graphs, length_of, planned
from rallychat.engines.slots import shared_prefix
from rallychat.errors import EngineRefused

log = logging.getLogger(__name__)

_STEP = 64
"""Columns are counted in these, so that attention runs on few different lengths."""


@dataclass(slots=True)
class Held:
    """What a slot's cache holds: tokens, evaluated with an adapter."""

    ids: list[int] = field(default_factory=list)
    adapter: int = -1


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens to evaluate in a slot, behind what it holds."""

    slot: int
    ids: Sequence[int]


class Runner(Protocol):
    """Evaluates tokens in slots."""

    rollback: bool
    """A tail can be dropped from a slot."""
    together: bool
    """Several prompts may be read in one step."""
    whole: bool
    """A prompt is read in one step, however long."""
    extends: bool
    """What was read of a prompt spares reading it again when more follows."""

    @property
    def cache_bytes(self) -> int:
        """What a token takes in a slot, where what it holds can be copied out and back; else 0."""
        ...

    def begin(self, slot: int, prompt: list[int], adapter: int, said: int = 0) -> int:
        """Make the slot hold as much of the prompt's beginning as it can, not all of it. How many tokens that is.

        Args:
            said: how many of the prompt's last tokens are the answer so far.
        """
        ...

    def evaluate(self, work: Sequence[Work]) -> Any:
        """The scores [rows, vocabulary] of what follows, in the order of `work`."""
        ...

    def forget(self, slot: int) -> None:
        """A step failed: the slot's cache holds nothing that can be relied upon."""
        ...

    def copied(self, slot: int) -> tuple[Held, dict[str, Any]]:
        """What a slot holds, and its keys and values by name, in memory of the machine."""
        ...

    def put(self, slot: int, held: Held, states: dict[str, Any]) -> None:
        """Makes a slot hold what was copied."""
        ...


class SlotDecoder:
    """All slots in one cache. `graphs` captures the decoding step, where the device can."""

    together = True
    whole = False
    rollback = True
    extends = True

    def __init__(self, model: Any, *, slots: int, window: int, adapters: AdapterRows, graphs: bool) -> None:
        self._forward = _Forward(model, slots, window)
        self._adapters = adapters
        self._slots = slots
        self._held = [Held() for _ in range(slots)]
        self._row = list(range(slots))
        """Of each slot."""
        padding = torch.full((1, 1), window, device=self._forward.device)
        # Allocates the cache: it fits now or never.
        scores = self._forward(0, torch.zeros_like(padding), padding, 1)
        self._graphs = self._captured(scores) if graphs else None

    @property
    def cache_bytes(self) -> int:
        """See `Runner`."""
        return self._forward.cache.bytes_per_column

    def begin(self, slot: int, prompt: list[int], adapter: int, said: int = 0) -> int:
        """See `Runner`. What was said is read as all else is."""
        held = self._held[slot]
        kept = min(shared_prefix(held.ids, prompt), len(prompt) - 1) if held.adapter == adapter else 0
        self._held[slot] = Held(prompt[:kept], adapter)
        return kept

    def evaluate(self, work: Sequence[Work]) -> Any:
        """See `Runner`. One alone runs where its row lies, unless its step is captured.

        Of several, single tokens go to the first rows, prompts to the last, so neither displaces the other.
        """
        single = all(len(one.ids) == 1 for one in work)
        graphs = self._graphs if single else None
        first = 0 if single else self._slots - len(work)
        if len(work) == 1 and graphs is None:
            first = self._row[work[0].slot]
        self._gather([one.slot for one in work], first)
        ordered = sorted(work, key=lambda one: self._row[one.slot])
        begins = [len(self._held[one.slot].ids) for one in ordered]
        chosen = [self._held[one.slot].adapter for one in ordered]
        ids = [list(one.ids) for one in ordered]
        columns = [list(range(at, at + len(row))) for at, row in zip(begins, ids, strict=True)]
        if graphs is not None:
            logits = graphs.run(ids, columns, chosen)
        else:
            self._adapters.choose(chosen)
            device = self._forward.device
            length = min(-(-(max(row[-1] for row in columns) + 1) // _STEP) * _STEP, self._forward.window)
            logits = self._forward(
                first, padded(ids, 0, device), padded(columns, self._forward.window, device), length
            )
        for one in work:
            self._held[one.slot].ids.extend(one.ids)
        if ordered == list(work):
            return logits  # an index would have the device's work waited for
        place = {one.slot: row for row, one in enumerate(ordered)}
        return logits[[place[one.slot] for one in work]]

    def forget(self, slot: int) -> None:
        """See `Runner`."""
        self._held[slot] = Held()

    def copied(self, slot: int) -> tuple[Held, dict[str, Any]]:
        """See `Runner`."""
        held = self._held[slot]
        return Held(list(held.ids), held.adapter), self._forward.cache.copy(self._row[slot], len(held.ids))

    def put(self, slot: int, held: Held, states: dict[str, Any]) -> None:
        """See `Runner`."""
        self._held[slot] = Held()  # until all of it is there
        self._forward.cache.put(self._row[slot], states)
        self._held[slot] = Held(list(held.ids), held.adapter)

    def _captured(self, like: Any) -> Graphs | None:
        """Graphs, where a captured step gives what the step gives: not every model's can be captured."""
        forward = self._forward
        ids, last = _text(1, 9, forward.vocabulary), 8
        length = length_of(len(ids), forward.window)
        forward(0, *_rows([ids[:last]], [0], forward.window, forward.device), length)
        with planned():
            plain = forward(0, *_rows([ids[last:]], [last], forward.window, forward.device), length)
        try:
            graphs = Graphs(forward, self._adapters, slots=self._slots, window=forward.window, like=like)
            if _close(graphs.run([ids[last:]], [[last]], [-1]), plain):
                return graphs
            why = "captured, it gives other scores"
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
        log.warning("this model's step runs without CUDA graphs, which is slower: %s", why)
        return None

    def _gather(self, slots: Sequence[int], first: int) -> None:
        """Bring these slots' rows next to each other, from `first` on."""
        wanted = set(range(first, first + len(slots)))
        free = sorted(wanted - {self._row[slot] for slot in slots})
        for slot in slots:
            if self._row[slot] not in wanted:
                self._swap(slot, self._row.index(free.pop(0)))

    def _swap(self, one: int, other: int) -> None:
        columns = max(len(self._held[one].ids), len(self._held[other].ids))
        self._forward.cache.swap(self._row[one], self._row[other], columns)
        self._row[one], self._row[other] = self._row[other], self._row[one]


class _Forward:
    """The model over the slot cache: rows from `first` on, at given columns."""

    def __init__(self, model: Any, slots: int, window: int) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._call = _calling(model)
        self.device = model.get_input_embeddings().weight.device
        self.window = window
        self.vocabulary = int(config.vocab_size)
        self.cache = SlotCache(slots, window, int(config.num_hidden_layers))
        self._kinds = set(getattr(config, "layer_types", None) or ())
        self._mixed = len(self._kinds) > 1
        self._sliding = _sliding(config)
        eager = getattr(config, "_attn_implementation", "sdpa") == "eager"
        self._additive = model.dtype if eager else None

    def __call__(self, first: int, ids: Any, columns: Any, length: int) -> Any:
        """The scores behind the last token of each row."""
        self.cache.aim(first, columns, length)
        positions = torch.where(columns < self.window, columns, 0)
        return self._call(
            input_ids=ids,
            attention_mask=self._masks(columns, length),
            position_ids=positions,
            cache=self.cache,
        )

    def _masks(self, columns: Any, length: int) -> Any:
        full = masks(columns, length, sliding=None, additive=self._additive)
        if not self._sliding:
            return full
        sliding = masks(columns, length, sliding=self._sliding, additive=self._additive)
        if not self._mixed:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}


def _calling(model: Any) -> Any:
    """Calls the model for the scores of the last position, whatever this version names the cache."""
    names = set(inspect.signature(model.forward).parameters)
    cache_name = "cache" if "cache" in names else "past_key_values"
    keep = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    def call(*, cache: Any, **inputs: Any) -> Any:
        return model(**inputs, **{cache_name: cache}, use_cache=True, **keep).logits[:, -1]

    return call


def _sliding(config: Any) -> int | None:
    """Tokens that layers with a sliding window see; None: there are no such layers."""
    kinds = getattr(config, "layer_types", None)
    size = getattr(config, "sliding_window", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return int(size) if size else None


class Immovable:
    """A runner whose slots hold what cannot be copied out."""

    cache_bytes = 0

    def copied(self, slot: int) -> tuple[Held, dict[str, Any]]:
        """Never asked for."""
        raise EngineRefused("What this model's slots hold cannot be copied.")

    def put(self, slot: int, held: Held, states: dict[str, Any]) -> None:
        """Never asked for."""
        raise EngineRefused("What this model's slots hold cannot be copied.")


class TurnDecoder(Immovable):
    """A cache of the model's own kind per slot; answers take turns within a step.

    A recurrent state can neither drop a tail nor go on with several tokens at once: there a new prompt is read in one
    step, and what follows a kept one token by token.
    """

    together = False
    extends = True

    def __init__(self, model: Any, *, slots: int, adapters: AdapterRows) -> None:
        self._model = model
        self._call = _calling(model)
        self._adapters = adapters
        self._device = model.get_input_embeddings().weight.device
        self._held = [Held() for _ in range(slots)]
        self._caches: list[Any] = [None] * slots
        self.rollback = _croppable(self._fresh())
        self.whole = not self.rollback

    def begin(self, slot: int, prompt: list[int], adapter: int, said: int = 0) -> int:
        """See `Runner`. What was said is read as all else is."""
        held = self._held[slot]
        kept = min(shared_prefix(held.ids, prompt), len(prompt) - 1) if held.adapter == adapter else 0
        dropped = len(held.ids) - kept
        cache = self._caches[slot]
        if dropped and kept and cache is not None and self.rollback:
            cache.crop(-dropped)
        elif dropped or not kept or cache is None:
            kept, self._caches[slot] = 0, self._fresh()
        self._held[slot] = Held(prompt[:kept], adapter)
        return kept

    def evaluate(self, work: Sequence[Work]) -> Any:
        """See `Runner`."""
        return torch.cat([self._one(one) for one in work])

    def _one(self, one: Work) -> Any:
        held = self._held[one.slot]
        self._adapters.choose([held.adapter])
        parts = [[token] for token in one.ids] if held.ids and not self.rollback else [list(one.ids)]
        for part in parts:
            held.ids.extend(part)
            ids = torch.tensor([part], device=self._device)
            seen = torch.ones((1, len(held.ids)), dtype=torch.long, device=self._device)
            extra = {"attention_mask": seen} if self.rollback else {}
            logits = self._call(input_ids=ids, cache=self._caches[one.slot], **extra)
        return logits

    def forget(self, slot: int) -> None:
        """See `Runner`."""
        self._held[slot], self._caches[slot] = Held(), None

    def _fresh(self) -> Any:
        return DynamicCache(config=self._model.config.get_text_config())


def _croppable(cache: Any) -> bool:
    layers = getattr(cache, "layers", None) or ()
    return all(getattr(layer, "is_croppable", not getattr(layer, "is_sliding", False)) for layer in layers)


def agrees(model: Any, *, window: int) -> bool:
    """The slot cache gives what the model gives without one: for rows of different lengths, read in parts.

    Args:
        model: what is to be tried.
        window: tokens a row holds; at least 16.
    """
    forward = _Forward(model, 2, window)
    texts = [_text(k, size, forward.vocabulary) for k, size in ((1, 9), (2, 5))]
    device = forward.device
    try:
        forward(0, *_rows([texts[0][:4]], [0], window, device), min(16, window))
        forward(0, *_rows([texts[0][4:8], texts[1][:4]], [4, 0], window, device), min(16, window))
        found = forward(0, *_rows([texts[0][8:], texts[1][4:]], [8, 4], window, device), min(16, window))
        plain = torch.cat(
            [model(input_ids=torch.tensor([ids], device=device)).logits[:, -1] for ids in texts]
        )
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError):
        return False
    return _close(found, plain)


def _close(found: Any, plain: Any) -> bool:
    """The same scores but for rounding."""
    error = (found.float() - plain.float()).norm() / plain.float().norm().clamp_min(1e-6)
    return bool(error < (1e-3 if plain.dtype == torch.float32 else 5e-2))


def _text(pace: int, size: int, vocabulary: int) -> list[int]:
    """Tokens to try a model with."""
    step = max(1, vocabulary // 23)
    return [(3 + step * n * pace) % vocabulary for n in range(size)]


def _rows(ids: list[list[int]], begins: list[int], window: int, device: Any) -> tuple[Any, Any]:
    columns = [list(range(at, at + len(row))) for at, row in zip(begins, ids, strict=True)]
    return padded(ids, 0, device), padded(columns, window, device)
