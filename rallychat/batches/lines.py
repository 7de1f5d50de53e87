"""The lines of a batch's input, one at a time, however long the input is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

BOM: Final = b"\xef\xbb\xbf"
CHUNK: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `number` counts from 1, blank ones too; `text` is None if it is too long."""

    number: int
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Survey:
    """A file's identity, and how many of its lines are not blank."""

    sha256: str
    size: int
    lines: int


def survey(path: Path) -> Survey:
    """Reads a file once."""
    digest = hashlib.sha256()
    size = lines = 0
    blank = True
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            first, *rest = (part.strip() for part in chunk.split(b"\n"))
            blank = blank and not first
            for part in rest:
                lines += not blank
                blank = not part
    return Survey(digest.hexdigest(), size, lines + (not blank))


async def read_lines(stream: BinaryIO, *, longest: int) -> AsyncIterator[Line]:
    """The lines of a stream that are not blank. A pipe is waited for without keeping the event loop.

    Args:
        longest: bytes of a line beyond which it is not kept.
    """
    lines = lines_of(stream, longest)
    if _is_file(stream):
        for line in lines:
            yield line
        return
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Line | BaseException | None] = asyncio.Queue(8)

    def pump() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            try:
                for line in lines:
                    asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
                end: BaseException | None = None
            except OSError as exc:
                end = exc
            asyncio.run_coroutine_threadsafe(queue.put(end), loop)

    # a daemon: a person's terminal may never send another line, and Ctrl-C should not wait for it
    threading.Thread(target=pump, daemon=True, name="read a batch").start()
    while isinstance(read := await queue.get(), Line):
        yield read
    if read is not None:
        raise read


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # io.BytesIO has no number
        return True


def lines_of(stream: BinaryIO, longest: int) -> Iterator[Line]:
    """The lines of a file that are not blank; see `read_lines`."""
    number = 0
    while text := stream.readline(longest + 1):
        number += 1
        if len(text) > longest and not text.endswith(b"\n"):
            while text and not text.endswith(b"\n"):
                text = stream.readline(CHUNK)
            yield Line(number, None)
        elif stripped := (text.removeprefix(BOM) if number == 1 else text).strip():
            yield Line(number, stripped)
