"""The conversations of an export, one after the other, whatever the file's size: memory holds one of them.

Read with the standard library's parser, which refuses what is nested too deeply and numbers without end.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator
from typing import IO, Any, Final, NoReturn

from rallychat.errors import InvalidRequest

LONGEST: Final = 32 * 1024**2
"""Characters of one conversation."""
_PIECE: Final = 2**16
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_ALONE: Final = frozenset({"mapping", "chat", "history", "messages", "conversation"})
"""What only a conversation has: the file is one, not a list of them."""


class NotJson(ValueError):
    """What the file is instead, or where it stops being JSON."""


def records(file: IO[bytes]) -> Generator[Any]:
    """The items of a list, of the list called `conversations` in an object, or the one conversation that it is.

    Raises:
        NotJson: it is none, ends in the middle, or has too long an item; what came before that is good.
        InvalidRequest: it is a single value.
    """
    text = _Text(file)
    opening = text.peek()
    if opening == "[":
        yield from _items(text)
    elif opening == "{":
        yield from _members(text)
    else:
        text.value()
        raise InvalidRequest("The file holds a single value.", hint="it must be an export of conversations")


def _items(text: _Text) -> Generator[Any]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return


def _members(text: _Text) -> Generator[Any]:
    text.keeps = True  # until it is known whether the file is one conversation
    text.take("{")
    while text.peek() == '"':
        name = text.value()
        if name in _ALONE:
            yield text.whole()
            return
        text.take(":")
        if name == "conversations" and text.peek() == "[":
            text.keeps = False
            yield from _items(text)
            return
        text.value()
        if text.take(",}") == "}":
            return
    text.take("}")


class _Text:
    """A file as text that is read on where it is needed, and forgotten where it was passed by."""

    def __init__(self, file: IO[bytes]) -> None:
        self.keeps = False
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder(parse_constant=_refused).raw_decode
        self._held = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self._held, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def take(self, wanted: str) -> str:
        """Passes by the next character, which must be one of these."""
        found = self.peek()
        if not found or found not in wanted:
            there = f"{found!r} stands" if found else "it ends"
            raise NotJson(f"{there} where {' or '.join(wanted)} should be")
        self._at += 1
        return found

    def value(self) -> Any:
        """Passes by the next value."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._held, self._at)
            except json.JSONDecodeError as exc:
                if not self._more():
                    raise NotJson(exc.msg if self._held else "it is empty") from exc
            except RecursionError as exc:
                raise NotJson("it is nested too deeply") from exc
            except ValueError as exc:
                raise NotJson("a number is too long, or is none") from exc
            else:
                if end + len("e+") < len(self._held) or not self._more():  # else a number may go on
                    self._at = end
                    return value

    def whole(self) -> Any:
        """The object the file begins with, of which everything was kept."""
        self._at = 0
        return self.value()

    def _more(self) -> bool:
        """Reads on, if there is more: as much again as is held, so that what is parsed again costs as much in all."""
        if self._ended:
            return False
        start = 0 if self.keeps else self._at
        held = len(self._held) - start
        if held > LONGEST:
            raise NotJson(f"a conversation is longer than {LONGEST} characters")
        piece = self._file.read(max(_PIECE, held))
        self._ended = not piece
        try:
            self._held = self._held[start:] + self._decoder.decode(piece, self._ended)
        except UnicodeDecodeError as exc:
            raise NotJson("it is not UTF-8") from exc
        self._at -= start
        return True


def _refused(constant: str) -> NoReturn:
    raise ValueError(constant)
