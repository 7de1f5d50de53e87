"""Everything that is kept, weights apart, as one file; and back, into an empty place.

The file is a ZIP of the tables, a row a line as JSON, and of files of the data folder; `manifest.json` comes last and
has the checksum of each. It says nothing of the database it came from, so what was SQLite may become PostgreSQL.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from sqlalchemy import LargeBinary, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.disk import appear, settle
from rallychat.errors import Conflict, StoreError
from rallychat.store.database import Database
from rallychat.store.migrate import HEAD
from rallychat.store.tables import UtcDateTime, metadata
from rallychat.store.whole import whole

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("files", "batches", "catalog", "choices.json")
"""What of the data folder belongs in it: no weights, no logs, nothing of a running process."""
_DERIVED = frozenset({"passages", "owners", "leases", "idempotency_keys"})
"""Tables that are made anew, or mean nothing to another process."""
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError),
    *(AttributeError, LookupError, OverflowError, TypeError, ValueError),
)
"""What reading a ZIP file raises that is none, or not what was written."""
_CHUNK = 500
_LARGEST_MANIFEST = 64 * 1024 * 1024


def kept_tables() -> list[Table]:
    """The tables that go into the file, those that others point to first."""
    return [table for table in metadata.sorted_tables if table.name not in _DERIVED]


class BackupStore:
    """Made by `ConversationStore`.

    Args:
        folder: the data folder.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    @whole
    async def write(self, file: Path) -> int:
        """Writes everything, as it is at one moment, into a new file; returns its rows. Others go on meanwhile.

        Raises:
            Conflict: there is such a file. StoreError: it cannot be written; then there is none.
        """
        _refuse_there(file)
        part = file.with_name(f".{file.name}.part")
        members: dict[str, dict[str, Any]] = {}
        try:
            with _opened(part) as out:
                with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
                    async with self._database.read() as db:
                        for table in kept_tables():
                            name = f"tables/{table.name}.jsonl"
                            members[name] = await _dumped(db, table, archive, name)
                    for path in _files(self._folder):
                        name = path.relative_to(self._folder).as_posix()
                        with suppress(FileNotFoundError):  # deleted meanwhile, as on a server that goes on
                            members[name] = await asyncio.to_thread(_copied, path, archive, name)
                    about = {"format": FORMAT, "schema": HEAD, "created_at": datetime.now(UTC).isoformat()}
                    archive.writestr(MANIFEST, orjson.dumps({**about, "members": members}))
                await asyncio.to_thread(settle, out)
            await asyncio.to_thread(appear, part, file)
        except OSError as exc:
            raise StoreError(f"The backup {file} cannot be written: {exc.strerror or exc}.") from exc
        finally:
            part.unlink(missing_ok=True)
        return sum(member.get("rows", 0) for member in members.values())

    @whole
    async def restore(self, file: Path) -> int:
        """Brings everything back, all of it or nothing; returns its rows.

        Raises:
            StoreError: the file is damaged, no backup, or of a later version. Conflict: the place is not empty.
        """
        try:
            members = await asyncio.to_thread(_checked, file)
        except _DAMAGED as exc:
            raise StoreError(
                f"{file} is no backup of RallyChat, or is damaged: {exc}.", hint="nothing was restored"
            ) from exc
        except OSError as exc:
            raise StoreError(f"The backup {file} cannot be read: {exc.strerror or exc}.") from exc
        names = [name for name in members if not name.startswith("tables/")]
        if taken := [name for name in FILES if _holds(self._folder / name)]:
            raise Conflict(
                f"{self._folder / taken[0]} is there already.", hint="restore into an empty data folder"
            )
        moved: list[Path] = []
        staged = Path(tempfile.mkdtemp(prefix="restoring-", dir=self._folder))
        try:
            with zipfile.ZipFile(file) as archive:
                for name in names:
                    await asyncio.to_thread(archive.extract, name, staged)
                async with self._database.write() as db:
                    await _refuse_full(db, self._database.name)
                    for table in kept_tables():
                        if (member := f"tables/{table.name}.jsonl") in members:
                            await _loaded(db, table, archive, member)
                    _move_in(staged, self._folder, moved)
            moved.clear()
        except OSError as exc:
            raise StoreError(f"The backup could not be restored: {exc.strerror or exc}.") from exc
        finally:
            for target in moved:  # and the rows were not committed
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            shutil.rmtree(staged, ignore_errors=True)
        return sum(member.get("rows", 0) for member in members.values())


def _opened(path: Path) -> Any:
    """For its owner's eyes only: everybody's conversations are in it."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b")


def _refuse_there(file: Path) -> None:
    if file.exists():
        raise Conflict(f"There is a file {file} already.", hint="choose another name")


def _move_in(staged: Path, folder: Path, moved: list[Path]) -> None:
    for path in [*staged.iterdir()]:
        target = folder / path.name
        with suppress(OSError):
            target.rmdir()  # an empty folder that a start made
        path.replace(target)
        moved.append(target)


def _holds(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _files(folder: Path) -> Iterator[Path]:
    """What is there now, but for uploads that are still coming."""
    for name in FILES:
        path = folder / name
        there = path.rglob("*") if path.is_dir() else ()
        yield from sorted(each for each in there if each.suffix != ".part" and each.is_file())
        if path.is_file():
            yield path


async def _dumped(db: AsyncConnection, table: Table, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    digest, rows = hashlib.sha256(), 0
    with archive.open(name, "w", force_zip64=True) as out:
        async for chunk in _chunks(db, table):
            lines = b"".join(orjson.dumps(_written(table, row)) + b"\n" for row in chunk)
            digest.update(lines)
            rows += len(chunk)
            await asyncio.to_thread(out.write, lines)
    return {"sha256": digest.hexdigest(), "rows": rows}


async def _chunks(db: AsyncConnection, table: Table) -> AsyncIterator[list[dict[str, Any]]]:
    result = await db.stream(select(table).order_by(*table.primary_key))
    async for chunk in result.mappings().partitions(_CHUNK):
        yield [dict(row) for row in chunk]


def _written(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    coded = {}
    for name, value in row.items():
        binary = value is not None and isinstance(table.c[name].type, LargeBinary)
        coded[str(name)] = base64.b64encode(value).decode() if binary else value
    return coded


def _read(table: Table, line: bytes) -> dict[str, Any]:
    row = {name: value for name, value in orjson.loads(line).items() if name in table.c}
    for name, value in row.items():
        if value is not None and isinstance(table.c[name].type, LargeBinary):
            row[name] = base64.b64decode(value)
        elif value is not None and isinstance(table.c[name].type, UtcDateTime):
            row[name] = datetime.fromisoformat(value)
    return row


def _copied(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as out:
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
    return {"sha256": digest.hexdigest()}


def _checked(file: Path) -> dict[str, dict[str, Any]]:
    """The members, each of which is whole. Raises as `restore` does, in zipfile's words or ours."""
    with zipfile.ZipFile(file) as archive:
        if archive.getinfo(MANIFEST).file_size > _LARGEST_MANIFEST:
            raise ValueError("its manifest is too long")
        about = orjson.loads(archive.read(MANIFEST))
        for what, its, ours in (("format", about["format"], FORMAT), ("schema", about["schema"], HEAD)):
            if int(its) > int(ours):
                raise StoreError(
                    f"{file} was made by a later version of RallyChat ({what} {its}, and this one knows {ours}).",
                    hint="nothing was restored; update RallyChat here and try again",
                )
        members: dict[str, dict[str, Any]] = about["members"]
        if {*archive.namelist()} != {*members, MANIFEST}:
            raise ValueError("its manifest names other files than there are")
        for name, member in members.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.parts[0] not in ("tables", *FILES):
                raise ValueError(f"'{name}' does not belong into it")
            digest = hashlib.sha256()
            with archive.open(name) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != member["sha256"]:
                raise ValueError(f"'{name}' is not what was written")
    return members


async def _refuse_full(db: AsyncConnection, name: str) -> None:
    for table in kept_tables():
        if (await db.scalars(select(func.count()).select_from(table))).one():
            hint = "restore into an empty database: another --data-dir or --database-url"
            raise Conflict(f"{name} is not empty: it has {table.name}.", hint=hint)


async def _loaded(db: AsyncConnection, table: Table, archive: zipfile.ZipFile, member: str) -> None:
    with archive.open(member) as lines:
        chunk: list[dict[str, Any]] = []
        for line in lines:
            chunk.append(_read(table, line))
            if len(chunk) == _CHUNK:
                await db.execute(insert(table), chunk)
                chunk = []
        if chunk:
            await db.execute(insert(table), chunk)
