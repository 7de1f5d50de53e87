"""Files that appear whole or not at all, and disks that are full."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rallychat.disk import appear, settle
from rallychat.errors import ChecksumMismatch, DiskFull, SourceError
from rallychat.sources.progress import Delivery

CHUNK = 1024 * 1024
GGUF_MAGIC = b"GGUF"
_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full(exc: OSError) -> bool:
    """The disk, or the person's share of it, is full."""
    return exc.errno in _FULL


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turns what a disk refuses while `what` is written below `folder` into one sentence."""
    try:
        yield
    except OSError as exc:
        if is_full(exc):
            raise DiskFull(
                f"The disk of {folder} became full while {what} was written.",
                hint="make room there or set RALLYCHAT_DATA_DIR to another disk; nothing half done was kept",
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SourceError(
                f"{folder} cannot be written to.", hint="change its permissions or set RALLYCHAT_DATA_DIR"
            ) from exc
        raise SourceError(f"{what} could not be stored in {folder}: {exc.strerror or exc}.") from exc


def need_room(what: str, folder: Path, needed: int) -> None:
    """Raises DiskFull if fewer than `needed` bytes are free where `folder` is or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{what} needs {megabytes(needed)} in {folder}, and {megabytes(free)} are free.",
            hint="make room there or set RALLYCHAT_DATA_DIR to another disk",
        )


def megabytes(size: int) -> str:
    """A size as people say it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"


def unpack(source: BinaryIO, delivery: Delivery, *, size: int, sha256: str) -> None:
    """Copy `source` to the delivery's target, which appears only if it has this size and checksum."""
    part = delivery.work / "unpacked.part"
    digest = hashlib.sha256()
    done = 0
    with part.open("wb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
            done += len(chunk)
            delivery.report(done, size, "unpack")
        settle(file)
    check_sum(delivery.what, expected=sha256, actual=digest.hexdigest())
    if done != size:
        raise ChecksumMismatch(f"{delivery.what} has {done} bytes where {size} were promised.")
    appear(part, delivery.target)


def check_sum(what: str, *, expected: str, actual: str) -> None:
    """Raises ChecksumMismatch unless both SHA-256 sums are the same."""
    if expected.lower() != actual.lower():
        raise ChecksumMismatch(
            f"The weights of {what} arrived damaged: their checksum is {actual[:12]}…, not {expected[:12]}….",
            hint="they were thrown away; try again, and if it stays so, the source has changed them",
        )


def check_magic(what: str, path: Path) -> None:
    """Raises SourceError unless the file begins as a GGUF file does."""
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise SourceError(
            f"{what} is not a GGUF file: it begins with {magic!r}.",
            hint="RallyChat reads weights in GGUF format",
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if there is none."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it may be gone by now
                total += (Path(root) / name).stat().st_size
    return total


def largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`; 0 if there is none."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it may be gone by now
                largest = max(largest, (Path(root) / name).stat().st_size)
    return largest
