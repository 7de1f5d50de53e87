"""What people type, checked at the door."""

from __future__ import annotations

import re

from rallychat.errors import InvalidRequest

TITLE_LENGTH = 60
"""Characters of a conversation's first title."""
_TELLING = 12
"""Characters from which on a sentence says what a conversation is about."""
_SENTENCE = re.compile(r"(?<=[.!?])\s|(?<=[。！？])")
_COURTESY = re.compile(
    r"^(?:(?:hi|hello|hey|dear|good (?:morning|afternoon|evening))(?: there| all)?[\s,!.]+)?"
    r"(?:please[\s,]+)?(?:(?:can|could|would|will) you (?:please )?(?:help me (?:to )?)?|i(?:'d| would) like to )?",
    re.IGNORECASE,
)
"""English ways to begin that say nothing of the subject."""


def checked(text: str) -> str:
    """A message as it is, if it says anything and can be stored."""
    if not text.strip():
        raise InvalidRequest("The message is empty.", param="text")
    return encodable(text)


def encodable(text: str) -> str:
    """The text as it is, if it can be encoded.

    Raises:
        InvalidRequest: it holds a lone surrogate, half of a character that JSON can spell but nobody can store.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            f"The text holds half a character (a lone surrogate) at position {exc.start}.", param="messages"
        ) from exc
    return text


def title_of(text: str) -> str:
    """A title of one line for what begins with `text`: its first sentence that says something, without courtesies.

    By rule, so it stands before any model is asked, and where what that wrote is no title.
    """
    line = " ".join(text.split())
    said = _COURTESY.sub("", line)
    first = _SENTENCE.split(said, maxsplit=1)[0]
    said = first if len(first) >= _TELLING else said
    if len(said) < _TELLING:
        said = line
    elif said[0] != line[0]:
        said = said[0].upper() + said[1:].removesuffix("?")
    if len(said) <= TITLE_LENGTH:
        return said
    cut = said[: TITLE_LENGTH - 1]
    if said[TITLE_LENGTH - 1] != " " and " " in cut[TITLE_LENGTH // 2 :]:
        cut = cut.rpartition(" ")[0]
    return cut.rstrip(" ,;:") + "…"


def place_in_line(position: int, seconds: float | None) -> str:
    """Where somebody stands in a line and how long it may take: "3rd in line, about 20 s"."""
    teen = position % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(position % 10, "th")
    place = "next in line" if position == 1 else f"{position}{ending} in line"
    if seconds is None:
        return place
    step = 1 if seconds < 10 else 5
    shown = max(step, round(seconds / step) * step)
    return f"{place}, about {shown} s" if shown < 120 else f"{place}, about {round(shown / 60)} min"
