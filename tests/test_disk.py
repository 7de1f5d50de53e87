"""What is promised to survive a power cut is on the disk, under its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rallychat.settings import Settings
from rallychat.store import ConversationStore


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """What is brought to the disk, in order: files by their numbers, then the names in their folders."""
    done: list[int | str] = []

    def fsync(handle: int) -> None:
        about = os.fstat(handle)
        done.extend(os.listdir(handle) if stat.S_ISDIR(about.st_mode) else [about.st_ino])

    monkeypatch.setattr(os, "fsync", fsync)
    return done


async def test_a_file_that_is_kept_is_on_the_disk(tmp_path: Path, synced: list[int | str]) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        name, stream = store.files.begin()
        stream.write(b"x")
        store.files.land(name, stream)
        assert synced == [store.files.path(name).stat().st_ino, name]


async def test_a_backup_that_is_written_is_on_the_disk(tmp_path: Path, synced: list[int | str]) -> None:
    file = tmp_path / "backups" / "today.zip"
    file.parent.mkdir()
    async with ConversationStore.open(Settings(data_dir=tmp_path / "data")) as store:
        await store.backups.write(file)
    assert synced == [file.stat().st_ino, file.name]
