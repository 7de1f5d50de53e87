"""An answer as Markdown while it grows. Finished blocks are printed once; only the last one is drawn again.

So drawing costs what the last block costs, not what the answer costs, and the answer scrolls like any text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.text import Text

from rallychat.cli.options import printable

PER_SECOND = 12
"""Redraws of the growing block, at most; drawing never takes more than a quarter of the time."""

_parser = MarkdownIt().enable("table")


class MarkdownStream:
    """Prints an answer that comes in pieces. Use as a context manager; `add` and `think` what arrives."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._tail = ""
        self._thinking = False
        self._drawn_at = 0.0
        self._pause = 1 / PER_SECOND
        self._printed = False

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        self._settle(len(self._tail))

    def status(self, text: str) -> None:
        """Show what is being waited for, until something arrives."""
        if not self._tail and not self._printed:
            self._live.update(Text(printable(text), style="dim"), refresh=True)

    def think(self, text: str) -> None:
        """Reasoning: dim, before the answer."""
        if not self._thinking:
            self._settle(len(self._tail))
            self._thinking = True
        self._grow(text)

    def add(self, text: str) -> None:
        """More of the answer."""
        if self._thinking:
            self._settle(len(self._tail))
            self._thinking = False
        self._grow(text)

    def _grow(self, text: str) -> None:
        self._tail += printable(text)
        now = time.monotonic()
        if now - self._drawn_at >= self._pause:
            if not self._thinking:
                self._settle(_settled(self._tail))
            self._live.update(_LastLines(self._renderable(self._tail)), refresh=True)
            self._drawn_at = time.monotonic()
            self._pause = max(1 / PER_SECOND, 3 * (self._drawn_at - now))

    def _settle(self, length: int) -> None:
        """Print the first `length` characters of the tail for good."""
        done, self._tail = self._tail[:length], self._tail[length:]
        if not done.strip():
            return
        self._live.update(Text(""), refresh=True)
        if self._printed:
            self._console.print()
        self._console.print(self._renderable(done.strip("\n")))
        self._printed = True

    def _renderable(self, text: str) -> Markdown | Text:
        return Text(text.strip(), style="dim italic") if self._thinking else _Answer(text)


class _Heading(Heading):
    """A heading at the left, where the text below it begins."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Answer(Markdown):
    elements: ClassVar = {**Markdown.elements, "heading_open": _Heading}


class _LastLines:
    """The end of a renderable, as much as the screen holds: what is above it cannot be drawn again."""

    def __init__(self, inner: Markdown | Text) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options, pad=False)
        yield from _joined(lines[-max(1, console.height - 2) :])


def _joined(lines: list[list[Segment]]) -> Iterator[Segment]:
    for line in lines:
        yield from line
        yield Segment.line()


def _settled(text: str) -> int:
    """How many characters belong to blocks that can no longer change: all top-level blocks but the last."""
    starts = [
        token.map[0] for token in _parser.parse(text) if token.level == 0 and token.map and token.nesting >= 0
    ]
    if len(starts) < 2:
        return 0
    lines = text.split("\n")
    return sum(len(line) + 1 for line in lines[: starts[-1]])
