"""Pickled adapters become safetensors, and nothing in them runs."""

from __future__ import annotations

import collections
import io
import json
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.errors import Unsupported
from rallychat.sources.pickled import converted


class _Word:
    """Stands for a global of torch in a pickle, without torch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Storage:
    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


class _Call:
    """A call in a pickle."""

    def __init__(self, word: _Word, *args: Any) -> None:
        self.word, self.args = word, args


_PurePickler: Any = vars(pickle)["_Pickler"]


class _Writer(_PurePickler):  # type: ignore[misc]
    """Writes pickles as torch.save does."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, _Word):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Storage):
            self.save(("storage", _Word("torch", obj.kind), obj.key, "cpu", obj.count))
            self.write(pickle.BINPERSID)
        elif isinstance(obj, _Call):
            self.save(obj.word)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(
    kind: str, key: str, shape: tuple[int, ...], *, start: int = 0, stride: tuple[int, ...] | None = None
) -> _Call:
    """A tensor as torch.save writes it; its storage is the file `key`."""
    steps = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    rebuild = _Word("torch._utils", "_rebuild_tensor_v2")
    return _Call(
        rebuild, _Storage(kind, key, 64), start, shape, stride or steps, False, collections.OrderedDict()
    )


def saved(path: Path, table: Any, **storages: bytes) -> Path:
    """A file as torch.save writes it."""
    listing = io.BytesIO()
    _Writer(listing, protocol=2).dump(table)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", listing.getvalue())
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", numbers)
    return path


def read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """A safetensors file, by its definition."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    return {
        name: (each["dtype"], each["shape"], data[slice(*each["data_offsets"])])
        for name, each in table.items()
        if name != "__metadata__"
    }


def test_tensors_keep_names_kinds_shapes_and_numbers(tmp_path: Path) -> None:
    floats, halves = struct.pack("<6f", *range(6)), struct.pack("<4e", 1, 2, 3, 4)
    table = collections.OrderedDict(
        a=tensor("FloatStorage", "0", (2, 3)), b=tensor("HalfStorage", "1", (2,), start=2)
    )
    converted(saved(tmp_path / "a.bin", table, _0=floats, _1=halves), tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors") == {
        "a": ("F32", [2, 3], floats),
        "b": ("F16", [2], halves[4:]),
    }


@pytest.mark.parametrize(
    ("word", "args"),
    [
        (("os", "system"), ("touch ran",)),
        (("posix", "system"), ("touch ran",)),
        (("builtins", "eval"), ("1",)),
        (("builtins", "getattr"), ("", "")),
        (("torch", "load"), ("x",)),
        (("torch._utils", "_rebuild_sparse_tensor"), ()),
        (("collections", "namedtuple"), ("A", "b")),
    ],
    ids=lambda value: ".".join(value) if len(value) == 2 else "",
)
def test_a_pickle_that_calls_anything_else_is_refused_and_nothing_runs(
    word: tuple[str, str], args: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.bin", {"a": _Call(_Word(*word), *args)})
    with pytest.raises(Unsupported, match=f"wants to run {word[0]}.{word[1]}"):
        converted(path, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == ["a.bin"]  # noqa: PTH208


@pytest.mark.parametrize(
    "table",
    [
        {"a": 1},
        ["a"],
        {1: tensor("FloatStorage", "0", (2,))},
        {"a": tensor("FloatStorage", "0", (99,))},  # more numbers than there are
        {"a": tensor("FloatStorage", "missing", (2,))},
        {"a": tensor("FloatStorage", "../0", (2,))},
        {"a": tensor("FloatStorage", "0", (2, 3), stride=(1, 2))},  # transposed
        {"a": tensor("StrangeStorage", "0", (2,))},
    ],
)
def test_what_is_no_table_of_whole_tensors_is_refused(table: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.bin", table, _0=struct.pack("<6f", *range(6)))
    with pytest.raises(Unsupported, match="pickle that was not converted"):
        converted(path, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
        with pytest.raises(Unsupported):
            converted(path, Path(folder) / "a.safetensors")
        path.write_bytes(raw)
        with pytest.raises(Unsupported):
            converted(path, Path(folder) / "a.safetensors")


@pytest.mark.hf
def test_what_torch_saves_is_what_safetensors_reads(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).to(torch.bfloat16)).state_dict()
    state["part"] = torch.arange(12.0).reshape(3, 4)[1:]
    torch.save(state, tmp_path / "a.bin")
    converted(tmp_path / "a.bin", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
