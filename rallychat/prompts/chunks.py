"""Where a rendered prompt may be cut: whose stretch is whose, and which of its text is never a control token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rallychat.errors import TemplateError
from rallychat.messages import Piece
from rallychat.prompts.layout import Stretch

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a rendered prompt: `message` is the index whose stretch this is, None for the memory.

    An assistant's chunk is its content alone; everything between two answers belongs to the messages in
    between, the header of the coming answer included.
    """

    message: int | None
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The chunk as text."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered prompt. `segmented` is False where the template made message boundaries unknowable."""

    chunks: tuple[Chunk, ...]
    segmented: bool

    @property
    def text(self) -> str:
        """The exact prompt text."""
        return "".join(chunk.text for chunk in self.chunks)


def private_characters(texts: Sequence[str], count: int) -> Iterator[str]:
    """`count` private-use characters that occur in none of the texts."""
    taken = set().union(*texts)
    free = (char for char in map(chr, _PRIVATE_USE) if char not in taken)
    return (char for _, char in zip(range(count), free, strict=False))


def spans_of(
    plain: str, texts: Sequence[str], text_of: Callable[[Sequence[str]], str], begin: str, end: str
) -> list[tuple[int, int]] | None:
    """Where each text stands in `plain`, found by rendering once more with marks around each.

    Templates may trim: then the marks go around the trimmed text, or inside its white space. None where the
    marks do not come back once each and in order, or where they changed what the template wrote.
    """
    for marked_as in (_around, _around_stripped, _inside):
        try:
            marked = text_of([marked_as(text, begin, end) for text in texts])
        except TemplateError:
            return None
        if marked.replace(begin, "").replace(end, "") == plain:
            return _marked_spans(marked, begin, end, len(texts))
    return None


def _around(text: str, begin: str, end: str) -> str:
    return f"{begin}{text}{end}"


def _around_stripped(text: str, begin: str, end: str) -> str:
    return f"{begin}{text.strip()}{end}"


def _inside(text: str, begin: str, end: str) -> str:
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    return f"{before}{begin}{core}{end}{after}"


def _marked_spans(marked: str, begin: str, end: str, count: int) -> list[tuple[int, int]] | None:
    marks = list(re.finditer(f"[{begin}{end}]", marked))
    if "".join(mark.group() for mark in marks) != (begin + end) * count:
        return None
    positions = [mark.start() - earlier for earlier, mark in enumerate(marks)]  # as if no mark were there
    return list(zip(positions[::2], positions[1::2], strict=True))


def chunks(
    plain: str, stretches: Sequence[Stretch], spans: Sequence[tuple[int, int]], split: Splitter
) -> Iterator[Chunk]:
    """Cuts at the end of each stretch; an answer's header goes to the stretch before it."""
    cut = 0
    for index, (stretch, (_, stop)) in enumerate(zip(stretches, spans, strict=True)):
        last = index == len(stretches) - 1
        if last and not stretch.answer:
            until = len(plain)
        elif not last and stretches[index + 1].answer:
            until = spans[index + 1][0]
        else:
            until = stop
        yield Chunk(stretch.message, split.pieces(plain, cut, until, spans[max(0, index - 1) : index + 2]))
        cut = until
    if cut < len(plain):
        yield Chunk(stretches[-1].message, split.pieces(plain, cut, len(plain), spans[-1:]))


class Splitter:
    """Cuts text into pieces: shielded control tokens become literal, everything else is `special`."""

    def __init__(self, shields: Mapping[str, str], control: re.Pattern[str]) -> None:
        self._shields = shields
        self._control = control
        self._pattern = re.compile(f"[{''.join(shields)}]") if shields else re.compile(r"(?!)")

    def pieces(
        self, text: str, start: int, stop: int, contents: Sequence[tuple[int, int]]
    ) -> tuple[Piece, ...]:
        """Pieces of `text[start:stop]`, a whole prompt; `contents` are the places where somebody wrote."""
        literal = [
            (m.start(), m.end(), self._shields[m.group()]) for m in self._pattern.finditer(text, start, stop)
        ]
        # A token that content and template only form together was meant by nobody: keep it text.
        literal += [
            (m.start(), m.end(), m.group())
            for m in self._control.finditer(text, start, stop)
            if any(a < m.end() and m.start() < b for a, b in contents)
        ]
        out: list[Piece] = []
        at = start
        for a, b, token in sorted(literal):
            if a > at:
                out.append(Piece(text[at:a], start=at == 0))
            out.append(Piece(token, special=False, start=a == 0))
            at = b
        if at < stop:
            out.append(Piece(text[at:stop], start=at == 0))
        return tuple(out)
