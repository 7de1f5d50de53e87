"""Long texts in passages: what is searched and quoted of a message that is too long to be quoted whole. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

WHOLE = 900
"""Characters up to which a text is one passage."""
LENGTH = 480
"""Characters of a passage of a longer one, about; a sentence is cut only where it is longer by itself."""
BRIEF = 160
"""Characters of a passage that is cut to its sentences, but one sentence at least."""
_ENDS = re.compile(r"\n\s*\n|\n|(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])")

Span = tuple[int, int]
"""Where a passage begins and ends in its text."""


def passages(text: str) -> list[Span]:
    """The passages of a text, in order and without gaps but for white space."""
    if len(text) <= WHOLE:
        return [(0, len(text))]
    spans: list[Span] = []
    start = end = 0
    for sentence_end in (*(match.end() for match in _ENDS.finditer(text)), len(text)):
        if sentence_end - start > LENGTH and end > start:
            spans.append((start, end))
            start = end
        while sentence_end - start > LENGTH:
            cut = _cut(text, start)
            spans.append((start, cut))
            start = cut
        end = sentence_end
    if end > start:
        spans.append((start, end))
    return [span for span in spans if text[slice(*span)].strip()]


def sentences(text: str, within: Span, *, worth: Callable[[str], float]) -> Span:
    """Of a passage the sentence that is worth most, with those after and before it as far as they are few words."""
    ends = [match.end() for match in _ENDS.finditer(text) if within[0] < match.end() < within[1]]
    spans = list(pairwise([within[0], *ends, within[1]]))
    first = last = max(range(len(spans)), key=lambda at: (worth(text[slice(*spans[at])]), -at))
    while last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= BRIEF:
        last += 1
    while first > 0 and spans[last][1] - spans[first - 1][0] <= BRIEF:
        first -= 1
    return spans[first][0], spans[last][1]


def _cut(text: str, start: int) -> int:
    """Where a sentence that is too long is cut: at its last space that is near enough."""
    space = text.rfind(" ", start + LENGTH // 2, start + LENGTH)
    return space + 1 if space > 0 else start + LENGTH
