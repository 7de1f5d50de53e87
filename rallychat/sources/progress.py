"""How far a fetch has come, and how it is called off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rallychat.errors import SourceCancelled

Stage = Literal["download", "unpack", "verify"]


@dataclass(frozen=True, slots=True)
class FileProgress:
    """`done` of `total` bytes of one file."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` bytes of this stage; `total` is None while unknown.

    `files` are those of a download of several, in the order they come.
    """

    done: int
    total: int | None
    stage: Stage
    files: tuple[FileProgress, ...] = ()

    @property
    def fraction(self) -> float | None:
        """0..1, or None while the total is unknown."""
        return min(self.done / self.total, 1.0) if self.total else None


OnProgress = Callable[[Progress], None]
Cancelled = Callable[[], bool]


def never() -> bool:
    """A fetch nobody calls off."""
    return False


@dataclass(frozen=True)
class Delivery:
    """One fetch under way: what is fetched for whom, where it goes, and who is told."""

    what: str
    """The model's name, for sentences."""
    target: Path
    """The finished file; it appears there in one step."""
    work: Path
    """Folder of everything unfinished; whatever is in it may be deleted at any time."""
    on_progress: OnProgress
    cancelled: Cancelled

    def report(self, done: int, total: int | None, stage: Stage) -> None:
        """Tell how far it has come.

        Raises:
            SourceCancelled: it was called off.
        """
        self.check()
        self.on_progress(Progress(done, total, stage))

    def check(self) -> None:
        """Raises SourceCancelled if it was called off."""
        if self.cancelled():
            raise SourceCancelled(f"The download of {self.what} was cancelled.")
