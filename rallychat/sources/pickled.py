"""Turns what `torch.save` wrote into safetensors, without running what is in it.

Weights of 2023 were often published as pickles, and a pickle is a program. This reader knows the few words that tensors
are made of and refuses every other, so nothing of the program runs; what is loaded later is safetensors alone.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from rallychat.errors import Unsupported

_LONGEST: Final = 16 * 2**20
"""Bytes of a pickle that names tensors; the numbers themselves lie beside it."""
_CHUNK: Final = 2**20
_KINDS: Final[Mapping[str, tuple[str, int]]] = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
"""torch's kinds of storage: safetensors' name, and bytes of one number."""
_BROKEN: Final = (
    zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    ImportError, OverflowError, MemoryError, RecursionError, NotImplementedError,
)  # fmt: skip
"""What reading a broken file raises."""


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor's numbers lie: `start` is counted in numbers."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * _KINDS[self.storage.kind][1]


def converted(source: Path, target: Path) -> None:
    """Write the tensors of `source` to `target` as safetensors; it appears when it is whole.

    Raises:
        Unsupported: it holds anything but tensors, or is no file of `torch.save`.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        with zipfile.ZipFile(source) as archive:
            (listing,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            tensors = _tensors(archive, listing)
            data = listing.removesuffix("data.pkl") + "data/"
            with part.open("wb") as out:
                out.write(_header(tensors))
                for tensor in tensors.values():
                    for piece in _numbers(archive, data, tensor):
                        out.write(piece)
        part.rename(target)
    except Unsupported:
        part.unlink(missing_ok=True)
        raise
    except _BROKEN as exc:
        part.unlink(missing_ok=True)
        raise _refused(source.name, f"it cannot be read: {exc}") from exc


def write_index(folder: Path) -> None:
    """Write beside converted files which of them holds which tensor, as transformers wants it."""
    table: dict[str, str] = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with path.open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        table |= {name: path.name for name in names if name != "__metadata__"}
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


class _Reader(pickle.Unpickler):
    """Reads a pickle of tensors. Functions are made anew for each word, so nothing in it can change them."""

    def find_class(self, module: str, name: str) -> Any:
        """What a word of the pickle stands for."""
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuilder()
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", _ if name in _KINDS:
                return name
            case _:
                raise _refused("the file", f"it wants to run {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, by the name of its file."""
        word, kind, key, *_ = pid
        if word != "storage" or kind not in _KINDS or not isinstance(key, str) or "/" in key:
            raise _refused("the file", "it refers to something that is no tensor")
        return _Storage(kind, key)


def _rebuilder() -> Callable[..., _Tensor]:
    def rebuild(
        storage: _Storage, start: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> _Tensor:
        steps, step = [], 1
        for length in reversed(shape):
            steps.append(step)
            step *= length
        kept = [(a, b) for a, b, length in zip(stride, reversed(steps), shape, strict=True) if length > 1]
        if any(a != b for a, b in kept):
            raise _refused("the file", "a tensor in it does not lie in one piece")
        return _Tensor(storage, int(start), tuple(int(length) for length in shape))

    return rebuild


def _tensors(archive: zipfile.ZipFile, listing: str) -> dict[str, _Tensor]:
    if archive.getinfo(listing).file_size > _LONGEST:
        raise ValueError("its list of tensors is too long")
    found = _Reader(BytesIO(archive.read(listing))).load()
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError("it is no table of tensors")
    if not all(
        isinstance(tensor, _Tensor) and isinstance(tensor.storage, _Storage) for tensor in found.values()
    ):
        raise ValueError("it holds more than tensors")
    return dict(found)


def _header(tensors: Mapping[str, _Tensor]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        table[name] = {
            "dtype": _KINDS[tensor.storage.kind][0],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    written = json.dumps(table, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written


def _numbers(archive: zipfile.ZipFile, data: str, tensor: _Tensor) -> Iterator[bytes]:
    left = tensor.size
    with archive.open(data + tensor.storage.key) as file:
        file.seek(tensor.start * _KINDS[tensor.storage.kind][1])
        while left:
            piece = file.read(min(_CHUNK, left))
            if not piece:
                raise ValueError("numbers of a tensor are missing")
            left -= len(piece)
            yield piece


def _refused(name: str, why: str) -> Unsupported:
    return Unsupported(
        f"{name} is a pickle that was not converted: {why}.",
        hint="look for a copy in the safetensors format, or convert it: https://huggingface.co/spaces/safetensors/convert",
    )
