"""Encoder-decoders (T5): the encoder reads the prompt, the decoder answers, many answers in one step.

Answers of different lengths share a step: each row is moved to the right and what is missing on its left is masked,
which is exact where positions are relative, as T5's are. Other models batch answers of equal length only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from rallychat.engines.hf_adapters import AdapterRows
from rallychat.engines.hf_decoder import Immovable, Work

_Layers = list[tuple[Any, Any]]
"""Keys and values of each layer: [1, heads, tokens, head size]."""


@dataclass(slots=True)
class _Row:
    """One slot: its prompt, what the encoder made of it, and what the decoder has said so far.

    `before` is what was said of the answer earlier, in another request.
    """

    prompt: list[int] = field(default_factory=list)
    adapter: int = -1
    before: list[int] = field(default_factory=list)
    crossed: _Layers = field(default_factory=list)
    spoken: _Layers = field(default_factory=list)
    fresh: bool = True


class Seq2Seq(Immovable):
    """See the module.

    Args:
        model: an encoder-decoder.
        around: the tokens a prompt wants in front and behind, added where they are missing.
    """

    rollback = False
    together = False
    whole = True
    extends = False

    def __init__(
        self, model: Any, *, slots: int, adapters: AdapterRows, around: tuple[list[int], list[int]]
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._before, self._after = around
        self._device = model.get_input_embeddings().weight.device
        self._cache_name = (
            "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        )
        start = model.generation_config.decoder_start_token_id
        self._start = int(model.config.decoder_start_token_id if start is None else start)
        self._rows = [_Row() for _ in range(slots)]
        self._batch: tuple[int, ...] = ()
        self._cache: Any = None
        self._heard: Any = None
        self._said: Any = None
        self._mixes = self._agrees()

    def begin(self, slot: int, prompt: list[int], adapter: int, said: int = 0) -> int:
        """See `Runner`. What the encoder made of the same prompt is kept; what was said is the decoder's to read."""
        self._unpack()
        row, end = self._rows[slot], len(prompt) - said
        asked, before = prompt[:end], prompt[end:]
        if row.crossed and row.prompt == asked and row.adapter == adapter:
            row.before, row.spoken, row.fresh = before, [], True
            return min(end, len(prompt) - 1)
        self._rows[slot] = _Row(asked, adapter, before)
        return 0

    def evaluate(self, work: Sequence[Work]) -> Any:
        """See `Runner`."""
        found: dict[int, Any] = {}
        for one in work:
            if self._rows[one.slot].fresh:
                found[one.slot] = self._read(self._rows[one.slot])
        for group in self._groups([one for one in work if one.slot not in found]):
            scores = self._speak(group)
            found |= {one.slot: scores[at : at + 1] for at, one in enumerate(group)}
        return torch.cat([found[one.slot] for one in work])

    def forget(self, slot: int) -> None:
        """See `Runner`."""
        self._batch, self._cache = (), None  # rows of the same step are lost with it
        self._rows[slot] = _Row()

    def _groups(self, work: list[Work]) -> Iterator[list[Work]]:
        if self._mixes:
            if work:
                yield work
            return
        self._unpack()
        lengths: dict[int, list[Work]] = {}
        for one in work:
            lengths.setdefault(self._rows[one.slot].spoken[0][0].shape[2], []).append(one)
        yield from lengths.values()

    def _read(self, row: _Row) -> Any:
        """The encoder's pass and the decoder's first step, through what was said earlier."""
        self._unpack()
        self._adapters.choose([row.adapter])
        states = None
        if not row.crossed:
            ids = row.prompt
            ids = ids if ids[: len(self._before)] == self._before else self._before + ids
            ids = ids if ids[len(ids) - len(self._after) :] == self._after else ids + self._after
            tensor = torch.tensor([ids], device=self._device)
            states = self._model.get_encoder()(
                input_ids=tensor, attention_mask=torch.ones_like(tensor)
            ).last_hidden_state
        cache = _cache_of([], row.crossed)
        heard = states.shape[1] if states is not None else row.crossed[0][0].shape[2]
        spoken = [self._start, *row.before]
        logits = self._decode(
            [spoken],
            cache,
            torch.ones((1, heard), dtype=torch.long, device=self._device),
            torch.ones((1, len(spoken)), dtype=torch.long, device=self._device),
            states,
        )
        row.crossed = _layers_of(cache.cross_attention_cache)
        row.spoken = _layers_of(cache.self_attention_cache)
        row.fresh = False
        return logits

    def _speak(self, work: Sequence[Work]) -> Any:
        """One step of the decoder for these rows."""
        slots = tuple(one.slot for one in work)
        if slots != self._batch:
            self._unpack()
            self._pack(slots)
        self._adapters.choose([self._rows[slot].adapter for slot in slots])
        self._said = pad(self._said, (0, 1), value=1)
        return self._decode([list(one.ids) for one in work], self._cache, self._heard, self._said)

    def _decode(self, ids: list[list[int]], cache: Any, heard: Any, said: Any, states: Any = None) -> Any:
        if states is None:  # crossed keys and values stand for it: only its shape is looked at
            width = self._model.get_input_embeddings().weight.shape[1]
            states = torch.zeros(1, dtype=self._model.dtype, device=self._device).expand(*heard.shape, width)
        return self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=heard,
            decoder_input_ids=torch.tensor(ids, device=self._device),
            decoder_attention_mask=said,
            use_cache=True,
            **{self._cache_name: cache},
        ).logits[:, -1]

    def _pack(self, slots: tuple[int, ...]) -> None:
        rows = [self._rows[slot] for slot in slots]
        self._cache = _cache_of(
            _stacked([row.spoken for row in rows], left=True),
            _stacked([row.crossed for row in rows], left=False),
        )
        self._said = _mask([row.spoken[0][0].shape[2] for row in rows], self._device).flip(1)
        self._heard = _mask([row.crossed[0][0].shape[2] for row in rows], self._device)
        self._batch = slots

    def _unpack(self) -> None:
        """Give each row of the batch its own part back."""
        lengths = self._said.sum(1).tolist() if self._batch else []
        spoken = _layers_of(self._cache.self_attention_cache) if self._batch else []
        for at, (slot, length) in enumerate(zip(self._batch, lengths, strict=True)):
            self._rows[slot].spoken = [
                (keys[at : at + 1, :, -length:], values[at : at + 1, :, -length:]) for keys, values in spoken
            ]
        self._batch, self._cache = (), None

    def _agrees(self) -> bool:
        """Answers of different lengths may share a step: tried once, on two rows."""
        self._mixes = True
        if len(self._rows) < 2:
            return True
        size = int(self._model.get_input_embeddings().weight.shape[0])
        prompts = [[(5 + 7 * n * k) % size for n in range(1, 4 + k)] for k in (1, 2)]
        try:
            for slot, prompt in enumerate(prompts):
                self.begin(slot, prompt, -1)
                self.evaluate([Work(slot, prompt)])
            self.evaluate([Work(1, [7])])
            alone = [self.evaluate([Work(slot, [11])]) for slot in (0, 1)]
            for slot, prompt in enumerate(prompts):
                self.begin(slot, prompt, -1)
                self.evaluate([Work(slot, prompt)])
            self.evaluate([Work(1, [7])])
            together = self.evaluate([Work(0, [11]), Work(1, [11])])
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            return False
        finally:
            self._batch, self._cache = (), None
            self._rows = [_Row() for _ in self._rows]
        plain = torch.cat(alone)
        error = (together.float() - plain.float()).norm() / plain.float().norm().clamp_min(1e-6)
        return bool(error < (1e-3 if plain.dtype == torch.float32 else 5e-2))


def _stacked(rows: Sequence[_Layers], *, left: bool) -> _Layers:
    """The rows as one batch, padded on the left or on the right."""
    longest = max(row[0][0].shape[2] for row in rows)

    def one(tensor: Any) -> Any:
        missing = longest - tensor.shape[2]
        return pad(tensor, (0, 0, missing, 0) if left else (0, 0, 0, missing)) if missing else tensor

    return [
        (torch.cat([one(row[layer][0]) for row in rows]), torch.cat([one(row[layer][1]) for row in rows]))
        for layer in range(len(rows[0]))
    ]


def _cache_of(spoken: _Layers, crossed: _Layers) -> Any:
    cache = EncoderDecoderCache(_filled(spoken), _filled(crossed))
    cache.is_updated = dict.fromkeys(range(len(crossed)), True)
    return cache


def _filled(layers: _Layers) -> Any:
    cache = DynamicCache()
    for at, (keys, values) in enumerate(layers):
        cache.update(keys, values, at)
    return cache


def _layers_of(cache: Any) -> _Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _mask(lengths: Sequence[int], device: Any) -> Any:
    """Ones where a row has something, on the left."""
    places = torch.arange(max(lengths), device=device)
    return (places < torch.tensor(lengths, device=device)[:, None]).long()
