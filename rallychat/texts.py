"""What people type, checked at the door."""

from __future__ import annotations

from rallychat.errors import InvalidRequest

TITLE_LENGTH = 60
"""Characters of a conversation's first title."""


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
    """The beginning of a text as a title of one line."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
