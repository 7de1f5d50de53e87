"""A checkpoint's tokenizer: text in pieces to ids, and ids to text as they come.

SentencePiece tokenizers put a space in front of what they read. That is right at the start of a prompt alone: pieces
that go on in the middle of one are read by a copy of the tokenizer that adds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from tokenizers import Tokenizer

from rallychat.engines.protocol import Piece
from rallychat.errors import EngineUnavailable

_HALF: Final = "\ufffd"
_LONGEST: Final = 6
"""Tokens after which what is still no character never becomes one: characters have at most four bytes."""

_CHANNELS: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""gpt-oss parts what it thinks from what it says by control tokens. They are shown, as llama.cpp does, and read."""


class CheckpointTokenizer:
    """See the module. `whole`: an answer is a text of its own (encoder-decoders), not the prompt's continuation."""

    def __init__(self, tokenizer: Any, *, whole: bool = False) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EngineUnavailable(
                f"The tokenizer of this checkpoint ({type(tokenizer).__name__}) has no fast form.",
                hint="take a copy of the model that brings a tokenizer.json",
            )
        source = backend.to_str()
        self._special = _fresh(source)
        self._plain = _fresh(source)
        self._plain.encode_special_tokens = True
        going_on = None if _trims(self._plain) else _without_prefix(source)
        self._going_on = _fresh(going_on) if going_on else self._plain
        self._going_on.encode_special_tokens = True
        self._spoken = self._special if whole or not going_on else _fresh(going_on)
        self._told = _fresh(told) if (told := _with_channels(going_on or source)) else self._spoken
        added = self._special.get_added_tokens_decoder()
        self._control = {token for token, text in added.items() if text.special}
        self.control_tokens = tuple(sorted({text.content for text in added.values() if text.special}))
        self._bos = str(getattr(tokenizer, "bos_token", None) or "")
        self.vocabulary = int(self._special.get_vocab_size(with_added_tokens=True))

    def encode(self, piece: Piece) -> list[int]:
        """The ids of a piece; nothing is added in front or behind."""
        if not piece.special:
            return _ids(self._plain if piece.start else self._going_on, piece.text)
        if self._going_on is self._plain:
            return _ids(self._special, piece.text)
        if piece.start:
            # As a text of its own behind a BOS that the tokenizer adds: how authors' training code reads it.
            head = self._bos if self._bos and piece.text.startswith(self._bos) else ""
            return _ids(self._special, head) + _ids(self._special, piece.text[len(head) :])
        found = self._special.encode(piece.text, add_special_tokens=False)
        begins = (
            at for (at, _), token in zip(found.offsets, found.ids, strict=True) if token in self._control
        )
        first = next(begins, len(piece.text))
        return _ids(self._going_on, piece.text[:first]) + _ids(self._special, piece.text[first:])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, control tokens included."""
        return str(self._spoken.decode(list(ids), skip_special_tokens=False))

    def stream(self) -> TokenStream:
        """Reads one answer's tokens."""
        return TokenStream(self._told)


class TokenStream:
    """Tokens to text, as they come. Half a character waits for its other half; control tokens are not shown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        """The tokens told last, whole characters: what comes is decoded behind them, because a text's first token may
        lose its space."""
        self._waiting: list[int] = []

    def feed(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The text that is complete, and the tokens of exactly this text."""
        texts: list[str] = []
        told: list[int] = []
        for token in ids:
            self._waiting.append(token)
            before = self._decode(self._shown)
            whole = self._decode(self._shown + self._waiting)
            if whole.endswith(_HALF) and len(self._waiting) < _LONGEST:
                continue
            # With byte fallback one half spoils all bytes that it stands beside, those told before it too.
            text = whole[len(before) :] if whole.startswith(before) else self._decode(self._waiting)
            texts.append(text)
            told += self._waiting
            if text:
                self._shown = [] if text.endswith(_HALF) else self._waiting
            self._waiting = []
        return "".join(texts), tuple(told)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def _fresh(source: str) -> Any:
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []


def _trims(tokenizer: Any) -> bool:
    """White space at a text's end is lost (T5): pieces are words of their own, the space in front is between them."""
    return _ids(tokenizer, "a ") == _ids(tokenizer, "a")


def _without_prefix(source: str) -> str | None:
    """The same tokenizer without the space in front; None if it adds none."""
    parts = json.loads(source)
    changed = [
        _edit(parts, "normalizer", "normalizers", lambda part: part["type"] == "Prepend"),
        _edit(parts, "pre_tokenizer", "pretokenizers", lambda _: False),
        _edit(parts, "decoder", "decoders", lambda part: part["type"] == "Strip" and part["start"] > 0),
    ]
    return json.dumps(parts) if any(changed) else None


def _with_channels(source: str) -> str | None:
    """The same tokenizer with the tokens of channels as plain ones; None if it has none."""
    parts = json.loads(source)
    added = parts.get("added_tokens") or []
    if _CHANNELS[0] not in {token["content"] for token in added}:
        return None
    for token in added:
        token["special"] = token["special"] and token["content"] not in _CHANNELS
    return json.dumps(parts)


def _edit(parts: dict[str, Any], name: str, inner: str, drop: Any) -> bool:
    """Take what `drop` says out of a stage, and tell a Metaspace in it to add nothing. Whether anything changed."""
    stage = parts[name]
    if stage is None:
        return False
    several = stage["type"] == "Sequence"
    found = stage[inner] if several else [stage]
    kept = [part for part in found if not drop(part)]
    changed = len(kept) < len(found)
    for part in kept:
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            part["prepend_scheme"] = "never"
            changed = True
        if part["type"] == "ByteLevel" and name == "pre_tokenizer" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
            changed = True
    if several:
        stage[inner] = kept
    else:
        parts[name] = kept[0] if kept else None
    return changed
