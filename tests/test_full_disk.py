"""A disk without room: who sends or asks for a file is told that, and nothing half written is left."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import BinaryIO, NoReturn

import httpx
import pytest

from rallychat.api import library
from rallychat.store import FileStore
from rallychat.store.belongings import Belongings
from tests.batch_world import batching


class Full(io.FileIO):
    """A file that takes nothing."""

    def write(self, _data: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")


def said(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


NO_ROOM = (503, "store_error", "There is no room left on the server's disk.")


async def test_an_upload_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = FileStore.begin

    def begin_full(files: FileStore) -> tuple[str, BinaryIO]:
        name, stream = begin(files)
        stream.close()
        return name, io.BufferedRandom(Full(files.part(name), "r+"))

    monkeypatch.setattr(FileStore, "begin", begin_full)
    async with batching(tmp_path) as (http, _):
        for size in (10, 100_000):  # told when it is closed, and while it comes
            file = {"file": ("lines.jsonl", b"x" * size)}
            assert said(await http.post("/v1/files", files=file, data={"purpose": "batch"})) == NO_ROOM
        assert list((tmp_path / "files").glob("*")) == []


async def test_an_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(library, "import_file", full)
    async with batching(tmp_path) as (http, _):
        assert said(await http.post("/v1/conversations/import", content=b"[]")) == NO_ROOM


async def test_an_export_is_refused_and_another_fault_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = OSError(errno.ENOSPC, "No space left on device")

    async def full(*_: object, **__: object) -> NoReturn:
        raise wrong

    monkeypatch.setattr(Belongings, "export", full)
    async with batching(tmp_path) as (http, _):
        assert said(await http.get("/v1/me/export")) == NO_ROOM
        wrong = OSError(errno.EIO, "Input/output error")
        assert (await http.get("/v1/me/export")).status_code == 500
