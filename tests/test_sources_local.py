"""Weights that are already on this machine: used where they are, never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from rallychat.catalog import Model
from rallychat.catalog.types import FileWeights, NoWeights
from rallychat.errors import SourceError, SourceMissing
from rallychat.settings import Settings
from rallychat.sources import fetch, is_here, remove, weights_path


def model_at(path: Path) -> Model:
    return Model(
        id=str(path), name="Mine", family="shipped", weights=FileWeights(kind="file", path=str(path))
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", offline=True)


def test_a_file_is_used_where_it_is_and_survives_removal(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF and the rest")
    model = model_at(path)
    assert weights_path(model, settings) == path
    assert is_here(model, settings)
    assert fetch(model, settings, on_progress=lambda _: None) == path
    assert remove(model, settings) == 0
    assert path.read_bytes() == b"GGUF and the rest"
    assert not settings.data_dir.exists()


def test_a_home_folder_is_understood(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_path(model_at(Path("~/mine.gguf")), settings) == tmp_path / "mine.gguf"


def test_a_file_that_is_gone_is_named(tmp_path: Path, settings: Settings) -> None:
    model = model_at(tmp_path / "gone.gguf")
    assert not is_here(model, settings)
    with pytest.raises(SourceMissing, match=r"gone\.gguf does not exist"):
        fetch(model, settings, on_progress=lambda _: None)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "photo.gguf").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SourceError, match=r"photo\.gguf is not a GGUF file: it begins with b'\\x89PNG'"):
        fetch(model_at(tmp_path / "photo.gguf"), settings, on_progress=lambda _: None)


def test_a_model_without_weights_is_always_here(settings: Settings) -> None:
    model = Model(id="echo", name="Echo", family="echo", engine="echo", weights=NoWeights(kind="none"))
    assert is_here(model, settings)
    fetch(model, settings, on_progress=lambda _: None)
    assert remove(model, settings) == 0
    assert not settings.data_dir.exists()
