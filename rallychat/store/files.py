"""Files that people upload and batches make: a row each, and the bytes under `data_dir/files`.

Bytes are there before the row is, and go after it: whoever finds a row finds its file whole. What a crash leaves
without a row is swept later.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.disk import appear, settle
from rallychat.errors import Conflict, NotFound, StorageFull
from rallychat.identity import current
from rallychat.store import codec
from rallychat.store.batch_tables import batches, files
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.whole import whole

UPLOADING: Final = 24 * 3600
"""Seconds after which a file that nobody adds to, or a folder of such, counts as left by a crash."""
UNKNOWN: Final = 600
"""Seconds after which a whole file without a row is one of a crash, or of a user who was erased."""
_NAME: Final = re.compile(r"file-[0-9a-f]{23}", re.ASCII)
OPEN: Final = ("validating", "in_progress", "finalizing", "cancelling")
"""States of a batch that still reads its file."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a file."""

    id: str
    user_id: str
    purpose: str
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None = None


class FileStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction.

    Args:
        folder: where the bytes are; on PostgreSQL each machine has its own.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder
        self._scratch = folder.with_name("tmp")

    def begin(self) -> tuple[str, BinaryIO]:
        """The id of a new file, and where its bytes go; `keep` makes it known, `forget` takes it back."""
        name = new_id("file").replace("_", "-")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.part(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        return name, os.fdopen(handle, "w+b")

    @contextmanager
    def scratch(self) -> Generator[Path]:
        """A folder for what is on its way in or out, on the same disk; gone afterwards, or swept after a crash."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def part(self, file_id: str) -> Path:
        """Where the bytes of a file are while they come."""
        return self.folder / f"{file_id}.part"

    def path(self, file_id: str) -> Path:
        """Where the bytes of a known file are."""
        return self.folder / file_id

    def is_abroad(self, file_id: str) -> bool:
        """The bytes of a known file are not here, and may be on another machine."""
        return self._database.is_shared and not self.path(file_id).exists()

    def forget(self, file_id: str) -> None:
        """Removes bytes that no row tells of."""
        for path in (self.part(file_id), self.path(file_id)):
            path.unlink(missing_ok=True)

    def land(self, file_id: str, stream: BinaryIO) -> int:
        """Brings the bytes of a begun file to the disk, under their last name; returns how many."""
        settle(stream)
        size = os.fstat(stream.fileno()).st_size
        stream.close()
        appear(self.part(file_id), self.path(file_id))
        return size

    @whole
    async def keep(
        self,
        file_id: str,
        size: int,
        *,
        purpose: str,
        filename: str,
        lives: timedelta | None = None,
        most: int | None = None,
    ) -> StoredFile:
        """Makes a landed file known, as the current person's.

        Args:
            lives: after which it expires; None: never.
            most: bytes that this person may keep in all.

        Raises:
            StorageFull: this one would be too much.
        """
        row = row_of(file_id, size, purpose=purpose, filename=filename, lives=lives)
        async with self._database.write() as db:
            kept = int((await db.scalars(_kept())).one())
            if most is not None and kept + size > most:
                raise StorageFull(
                    f"{size} bytes more would be too much: {kept} of {most} are used.",
                    hint="delete files that are not needed any more",
                )
            await db.execute(insert(files).values(**row))
        return StoredFile(**row)

    @whole
    async def kept(self) -> int:
        """Bytes the current person keeps."""
        async with self._database.read() as db:
            return int((await db.scalars(_kept())).one())

    @whole
    async def get(self, file_id: str) -> StoredFile:
        """One file of the current person's.

        Raises:
            NotFound: there is none, or it has expired.
        """
        async with self._database.read() as db:
            return await _file(db, file_id)

    @whole
    async def list(
        self, *, purpose: str | None = None, limit: int, after: str | None = None, newest: bool = True
    ) -> Sequence[StoredFile]:
        """The current person's files. Where `after` is gone they go on from where it stood.

        Raises:
            NotFound: none can be called `after`.
        """
        asked = select(files).where(_mine(), _alive()).limit(limit)
        asked = asked.order_by(files.c.id.desc() if newest else files.c.id)
        if purpose is not None:
            asked = asked.where(files.c.purpose == purpose)
        if after is not None:
            if not _NAME.fullmatch(after):
                raise NotFound("file", after)
            asked = asked.where(files.c.id < after if newest else files.c.id > after)
        async with self._database.read() as db:
            return [StoredFile(**row) for row in (await db.execute(asked)).mappings()]

    @whole
    async def delete(self, file_id: str) -> None:
        """Deletes a file.

        Raises:
            NotFound: there is none. Conflict: a batch still reads it.
        """
        async with self._database.write() as db:
            await _file(db, file_id)
            read = select(batches.c.id).where(batches.c.input_file_id == file_id, batches.c.status.in_(OPEN))
            if (batch := (await db.scalars(read.limit(1))).first()) is not None:
                raise Conflict(f"The batch '{batch}' still reads this file.", hint="cancel it, or wait")
            await db.execute(delete(files).where(files.c.id == file_id))
        await asyncio.to_thread(self.forget, file_id)

    @whole
    async def sweep(self) -> int:
        """Deletes what has expired, of whomever, and what a crash left; returns how many files went."""
        used = select(batches.c.input_file_id).where(batches.c.status.in_(OPEN))
        expired = and_(files.c.expires_at <= datetime.now(UTC), files.c.id.not_in(used))
        async with self._database.read() as db:
            gone = list(await db.scalars(select(files.c.id).where(expired)))
            known = set(await db.scalars(select(files.c.id)))
        if gone:
            async with self._database.write() as db:
                await db.execute(delete(files).where(files.c.id.in_(gone)))
        left = [name for name in await asyncio.to_thread(self._old) if name not in known]
        for name in (*gone, *left):
            await asyncio.to_thread(self.forget, name)
        await asyncio.to_thread(self._sweep_scratch)
        return len(gone) + len(left)

    def _old(self) -> builtins.list[str]:
        return list(_older(self.folder, time.time()))

    def _sweep_scratch(self) -> None:
        for folder in self._scratch.glob("*"):
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime < time.time() - UPLOADING:
                    shutil.rmtree(folder, ignore_errors=True)


def row_of(
    file_id: str, size: int, *, purpose: str, filename: str, lives: timedelta | None
) -> dict[str, Any]:
    """The row of a new file of the current person's."""
    now = datetime.now(UTC)
    return {
        "id": file_id,
        "user_id": current().id,
        "purpose": purpose,
        "filename": codec.checked(filename, param="file"),
        "bytes": size,
        "created_at": now,
        "expires_at": None if lives is None else now + lives,
    }


def _mine() -> ColumnElement[bool]:
    return files.c.user_id == current().id


def _alive() -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > datetime.now(UTC))


def _kept() -> Any:
    return select(func.coalesce(func.sum(files.c.bytes), 0)).where(_mine())


async def _file(db: AsyncConnection, file_id: str) -> StoredFile:
    if codec.is_id(file_id):
        found = await db.execute(select(files).where(files.c.id == file_id, _mine(), _alive()))
        if (row := found.mappings().one_or_none()) is not None:
            return StoredFile(**row)
    raise NotFound("file", file_id)


def _older(folder: Path, now: float) -> Iterator[str]:
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            age = UPLOADING if entry.name.endswith(".part") else UNKNOWN
            with suppress(FileNotFoundError):
                if entry.name.startswith("file-") and entry.stat().st_mtime < now - age:
                    yield entry.name.removesuffix(".part")
