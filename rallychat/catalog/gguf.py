"""Reads what a GGUF file says of itself. Knows the file format; never loads weights.

The format is documented at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is untrusted input: every
length is checked against the bytes that are there before anything is allocated, so whatever the bytes, the outcome is
a `GGUF` or a `SettingsError`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from rallychat.errors import SettingsError

MAGIC: Final = b"GGUF"
CONTROL: Final = 3
"""Token type of a control token."""
_SCALARS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_KEYS: Final = 65_536
_MAX_TENSORS: Final = 1 << 20
_MAX_DIMENSIONS: Final = 8


class _Malformed(Exception):
    """What is wrong with the bytes; becomes a SettingsError naming the file."""


@dataclass(frozen=True)
class GGUF:
    """The header of one GGUF file: its metadata by key, as written, and the size of its tensors."""

    path: Path
    metadata: Mapping[str, Any]
    parameters: int
    """Weights in all tensors together."""

    @property
    def architecture(self) -> str:
        """`llama`, `qwen2`, `t5`, ...; empty if the file does not say."""
        return self._text("general.architecture")

    @property
    def name(self) -> str:
        """The model's name as its converter wrote it, or empty."""
        return self._text("general.name")

    @property
    def license(self) -> str:
        """The licence as its converter wrote it, or empty."""
        return self._text("general.license")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained to see."""
        return self._number("context_length")

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template shipped with the weights."""
        return self._text("tokenizer.chat_template") or None

    @property
    def space_in_front(self) -> bool:
        """Whether llama.cpp's tokenizer puts a space in front of every text, as SentencePiece does."""
        prefix = self.metadata.get("tokenizer.ggml.add_space_prefix", True)
        return self._text("tokenizer.ggml.model") == "llama" and prefix is not False

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary: the text of each token id."""
        value = self.metadata.get("tokenizer.ggml.tokens")
        return tuple(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else ()

    @property
    def bos_token(self) -> str:
        """Text of the token a sequence begins with, or empty."""
        return self._token("bos")

    @property
    def eos_token(self) -> str:
        """Text of the token an answer ends with, or empty."""
        return self._token("eos")

    @property
    def add_bos(self) -> bool | None:
        """Whether the tokenizer puts BOS in front by itself; None: the file does not say."""
        value = self.metadata.get("tokenizer.ggml.add_bos_token")
        return value if isinstance(value, bool) else None

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts of the control tokens, in order of their ids."""
        types = self.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(types, list):
            return ()
        return tuple(text for text, kind in zip(self.tokens, types, strict=False) if kind == CONTROL and text)

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes of KV cache one token takes at 16 bits, all layers together; None if it cannot be told."""
        layers, width = self._number("block_count"), self._number("embedding_length")
        heads = self.metadata.get(f"{self.architecture}.attention.head_count")
        kv_heads = self.metadata.get(f"{self.architecture}.attention.head_count_kv", heads)
        if (
            layers is None
            or not 0 < layers <= 65_536
            or not width
            or not isinstance(heads, int)
            or heads <= 0
        ):
            return None
        key = max(0, self._number("attention.key_length") or width // heads)
        value = max(0, self._number("attention.value_length") or width // heads)
        total = None
        if isinstance(kv_heads, list):
            total = sum(heads for heads in kv_heads if isinstance(heads, int) and heads > 0)
        elif isinstance(kv_heads, int) and kv_heads >= 0:
            total = kv_heads * layers
        return None if total is None else 2 * total * (key + value)

    @property
    def rollback(self) -> bool:
        """Whether a tail can be dropped from the cache: not with a sliding window or a recurrent state."""
        keys = ("attention.sliding_window", "ssm.state_size", "wkv.head_size", "recurrent_block_count")
        return not any(self._number(key) for key in keys)

    def _text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def _number(self, key: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _token(self, which: str) -> str:
        index = self.metadata.get(f"tokenizer.ggml.{which}_token_id")
        return self.tokens[index] if isinstance(index, int) and 0 <= index < len(self.tokens) else ""


def read_gguf(path: Path) -> GGUF:
    """Read the header of the GGUF file at `path`. A 150,000-token vocabulary takes about 50 ms.

    Raises:
        SettingsError: there is no such file, or it is not a (whole) GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header(path)
    except (OSError, ValueError) as exc:  # ValueError: mmap of an empty file
        why = exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else "it is empty"
        raise SettingsError(f"The weights file {path} cannot be read: {why}.") from exc
    except _Malformed as exc:
        hint = "the file may be cut off; remove it and fetch it again"
        raise SettingsError(f"{path} is not a usable GGUF file: {exc}.", hint=hint) from exc


class _Reader:
    """A cursor over the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def header(self, path: Path) -> GGUF:
        if self.data[:4] != MAGIC:
            raise _Malformed("it does not begin with 'GGUF'")
        self.at = 4
        version = self.scalar("<I")
        if version not in (2, 3):
            raise _Malformed(f"its format version {version} is not 2 or 3")
        tensors, keys = self.scalar("<Q"), self.scalar("<Q")
        if keys > _MAX_KEYS or tensors > _MAX_TENSORS:
            raise _Malformed(f"it claims {keys} metadata keys and {tensors} tensors")
        metadata = {}
        for _ in range(keys):
            key = self.string()
            metadata[key] = self.value(self.scalar("<I"))
        return GGUF(path, metadata, sum(self.tensor() for _ in range(tensors)))

    def scalar(self, layout: str) -> Any:
        try:
            (value,) = struct.unpack_from(layout, self.data, self.at)
        except struct.error:
            raise _Malformed(f"it ends within its header, at byte {self.size}") from None
        self.at += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        end = self.at + length
        if end > self.size:
            raise _Malformed(f"a text of {length} bytes at byte {self.at} runs past its end")
        text = self.data[self.at : end].decode("utf-8", errors="replace")
        self.at = end
        return text

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise _Malformed(f"the value type {kind} at byte {self.at} is unknown")

    def array(self) -> list[Any]:
        """One level deep: the format allows nesting, no known key uses it, and it invites deep recursion."""
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], count)
        if kind != _STRING:
            raise _Malformed(f"an array at byte {self.at} has items of the unsupported type {kind}")
        if count > (self.size - self.at) // 8:
            raise _Malformed(f"an array of {count} texts at byte {self.at} runs past its end")
        one: Callable[[], str] = self.string
        return [one() for _ in range(count)]

    def scalars(self, layout: str, count: int) -> list[Any]:
        width = struct.calcsize(layout)
        end = self.at + count * width
        if end > self.size:
            raise _Malformed(f"an array of {count} numbers at byte {self.at} runs past its end")
        found = [value for (value,) in struct.iter_unpack(layout, self.data[self.at : end])]
        self.at = end
        return found

    def tensor(self) -> int:
        """The number of weights in the tensor described here."""
        self.string()
        dimensions = self.scalar("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise _Malformed(f"a tensor at byte {self.at} claims {dimensions} dimensions")
        weights = 1
        for _ in range(dimensions):
            weights *= self.scalar("<Q")
        self.scalar("<I")  # its type
        self.scalar("<Q")  # its offset
        return weights
