"""What is done of a batch, on disk: the output in order, and beside it a journal of what the output lacks.

Whatever kills the process, the next one finds each finished line once. The journal's first line says what the batch
is and how much of the output counts; each further line is an outcome, in the order they came. The output grows
from the journal: what stands in it beyond the mark is written again from there. A long journal is begun anew with a
later mark.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import orjson
from filelock import FileLock, Timeout

from rallychat.batches.work import Outcome
from rallychat.disk import appear, settle
from rallychat.errors import Conflict

VERSION: Final = 1
LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a journal after which it is begun anew."""


class WriteError(OSError):
    """Outcomes cannot be written, or their journal: a full disk, a reader that is gone."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise WriteError(exc.errno, exc.strerror or str(exc)) from exc


@dataclass(frozen=True, slots=True)
class _Mark:
    """The output's first `size` bytes are the outcomes of its first `lines` lines, `failed` of them errors."""

    lines: int = 0
    size: int = 0
    failed: int = 0


class Journal:
    """A batch's output file. Use as a context manager, then `finish` if it is complete.

    Args:
        output: the file of outcomes; the journal stands beside it.
        facts: what the batch is (its input, its model). Another run goes on only with the same ones.
        overwrite: begin anew, whatever is there.
        limit: bytes of the journal after which it is begun anew.

    Raises:
        Conflict: the output is there and not of this batch, or another process works on it.
        WriteError: the disk refuses it, now or in any method.
    """

    @_writing()
    def __init__(
        self, output: Path, facts: Mapping[str, Any], *, overwrite: bool = False, limit: int = LIMIT
    ) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.journal")
        self.held: dict[int, Outcome] = {}
        self._facts = dict(facts)
        self._limit = limit
        self._lock = FileLock(output.with_name(f"{output.name}.lock"))
        self._journal: BinaryIO | None = None
        self._take_lock()
        try:
            self._open(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    @_writing()
    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # a file that could not be written fails again when it is closed
            closing.callback(self._lock.release)
            closing.callback(self._out.close)
            if self._journal is not None:
                closing.callback(self._journal.close)

    @_writing()
    def add(self, index: int, outcome: Outcome) -> None:
        """See `Record`. It survives the end of this process at once, and a power cut after `settle`."""
        assert self._journal is not None
        self._journal.write(_entry(index, outcome))
        self._journal.flush()
        self._hold(index, outcome)
        if self._journal.tell() > self._limit:
            self._begin_anew()

    @_writing()
    def settle(self) -> None:
        """See `Record`."""
        with suppress(ValueError):  # it was begun anew meanwhile, which settles it
            if self._journal is not None:
                os.fsync(self._journal.fileno())

    @_writing()
    def finish(self) -> None:
        """The batch is complete: the output is on the disk, and nothing else is left."""
        assert not self.held, "a line is missing"
        settle(self._out)
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # elsewhere than on Unix it cannot go while it is held
            Path(self._lock.lock_file).unlink(missing_ok=True)

    # --- opening ------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as exc:
            raise Conflict(f"Another process is writing {self.output}.", hint="wait for its end") from exc

    def _open(self, overwrite: bool) -> None:
        known = None if overwrite else self._known()
        if known is None and not overwrite and self.output.exists() and self.output.stat().st_size:
            raise _is_there(self.output)
        mark, entries = known or (_Mark(), [])
        self._out = self.output.open("r+b" if known else "w+b")
        self._out.truncate(mark.size)
        self._out.seek(mark.size)
        self.written, self.failed = mark.lines, mark.failed
        for index, outcome in entries:
            self._hold(index, outcome)
        self._begin_anew()

    def _known(self) -> tuple[_Mark, list[tuple[int, Outcome]]] | None:
        """What an earlier run left, or None if there was none."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            head, *entries = _whole_lines(file) or [{}]
        if head.get("version") != VERSION:
            raise Conflict(f"{self.path} is damaged, or of another version.", hint="begin anew: --overwrite")
        for name, value in self._facts.items():
            if head["facts"].get(name) != value:
                raise Conflict(
                    f"{self.output} was begun with another {name}.",
                    hint=f"go on with the same {name}, choose another name, or begin anew with --overwrite",
                )
        mark = _Mark(**head["mark"])
        if not self.output.exists() or self.output.stat().st_size < mark.size:
            raise Conflict(
                f"{self.output} has lost lines since it was begun.", hint="begin anew: --overwrite"
            )
        return mark, [(e["index"], Outcome(e["text"].encode(), e["ok"], e["tokens"])) for e in entries]

    # --- writing ------------------------------------------------------------------------------------------

    def _hold(self, index: int, outcome: Outcome) -> None:
        """Keeps an outcome until its turn has come, and writes those whose turn it is."""
        self.failed += not outcome.ok
        self.held[index] = outcome
        while (ready := self.held.pop(self.written, None)) is not None:
            self._out.write(ready.text + b"\n")
            self.written += 1
        self._out.flush()

    def _begin_anew(self) -> None:
        """A journal that holds only what the output, which is now on the disk, lacks."""
        os.fsync(self._out.fileno())
        failed = self.failed - sum(not outcome.ok for outcome in self.held.values())
        mark = asdict(_Mark(self.written, self._out.tell(), failed))
        fresh = self.path.with_name(f"{self.path.name}.new")
        journal = fresh.open("wb")
        journal.write(orjson.dumps({"version": VERSION, "facts": self._facts, "mark": mark}) + b"\n")
        for index, outcome in self.held.items():
            journal.write(_entry(index, outcome))
        settle(journal)
        appear(fresh, self.path)
        if self._journal is not None:
            self._journal.close()
        self._journal = journal


def _is_there(output: Path) -> Conflict:
    return Conflict(f"{output} exists already.", hint="choose another name, or say --overwrite")


def _entry(index: int, outcome: Outcome) -> bytes:
    said = {"index": index, "ok": outcome.ok, "tokens": outcome.tokens, "text": outcome.text.decode()}
    return orjson.dumps(said) + b"\n"


def _whole_lines(file: BinaryIO) -> list[dict[str, Any]]:
    """A journal's lines up to the first that was not written whole."""
    found: list[dict[str, Any]] = []
    for line in file:
        try:
            found.append(orjson.loads(line if line.endswith(b"\n") else b""))
        except orjson.JSONDecodeError:
            break
    return found


class Stream:
    """Outcomes in order onto a stream, which cannot be gone back on: nothing is resumed.

    Raises:
        WriteError: the stream refuses them, in any method.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.written = 0
        self.failed = 0
        self.held: dict[int, Outcome] = {}
        self._stream = stream

    @classmethod
    @_writing()
    def to(cls, output: Path, *, overwrite: bool) -> Self:
        """Into a file.

        Raises:
            Conflict: there is one, and it is not to be overwritten.
        """
        try:
            return cls(output.open("wb" if overwrite else "xb"))
        except FileExistsError as exc:
            raise _is_there(output) from exc

    @_writing()
    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()

    @_writing()
    def add(self, index: int, outcome: Outcome) -> None:
        """See `Record`."""
        self.failed += not outcome.ok
        self.held[index] = outcome
        while (ready := self.held.pop(self.written, None)) is not None:
            self._stream.write(ready.text + b"\n")
            self.written += 1
        self._stream.flush()

    def settle(self) -> None:
        """See `Record`."""
