"""A growing Markdown text, rendered by what changed: finished blocks once, the last block as it grows.

An update costs what its last block costs, whatever came before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from markdown_it.token import Token

from rallychat.ui.formulas import open_formula
from rallychat.ui.markdown import PLAIN_CODE, Env, parse, render_tokens

_MARKER: Final = re.compile(r"\s*+(?:\d{1,9}[.)]?\s*+|[-+*_=>#~`|:\s]*+)")
_PLAIN_FROM: Final = 4_000
"""Characters of an unfinished block from which its code is left without colours until it is finished."""


@dataclass(frozen=True, slots=True)
class Update:
    """What to change on the page.

    `finished`: HTML to append before the tail, for good. The tail then becomes its own first `keep`
    UTF-16 units (JavaScript's string index) followed by `tail`.
    """

    finished: str
    keep: int
    tail: str


class LiveMarkdown:
    """One growing answer as its viewers see it."""

    def __init__(self) -> None:
        self._open = ""
        self._tail = ""
        self._env: Env = {}

    def grow(self, text: str) -> Update:
        """The change that showing `text` more makes."""
        self._open += text
        tokens = parse(self._open, self._env)
        split, line = _last_settled(tokens, self._open)
        finished = ""
        if split:
            finished = render_tokens(tokens[:split], self._env)
            self._open = _after_line(self._open, line)
        env = {**self._env, PLAIN_CODE: True} if len(self._open) > _PLAIN_FROM else self._env
        tail = render_tokens(tokens[split:], env)
        keep = _common_prefix(self._tail, tail) if not finished else 0
        self._tail = tail
        return Update(finished, _utf16_length(tail[:keep]), tail[keep:])


def _last_settled(tokens: list[Token], text: str) -> tuple[int, int]:
    """Index and first line of the last top-level block that is sure to stay one of its own.

    A last line that so far only looks like a marker is not: "1" may become "1. item" of the list above it.
    """
    lines = text.count("\n")
    undecided = lines if _MARKER.fullmatch(text, text.rfind("\n") + 1) else lines + 1
    if (begun := open_formula(text)) is not None:  # what follows may be part of it
        undecided = min(undecided, text.count("\n", 0, begun) + 1)
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if token.level == 0 and token.nesting >= 0 and token.map is not None and token.map[0] < undecided:
            return index, token.map[0]
    return 0, 0


def _after_line(text: str, line: int) -> str:
    start = 0
    for _ in range(line):
        start = text.index("\n", start) + 1
    return text[start:]


def _common_prefix(old: str, new: str) -> int:
    low, high = 0, min(len(old), len(new))
    if old[:high] == new[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if old[:middle] == new[:middle]:
            low = middle
        else:
            high = middle
    return low


def _utf16_length(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)
