"""Titles of conversations: what a model is asked, and whether its answer is a title. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rallychat.messages import Message
from rallychat.texts import TITLE_LENGTH, title_of

TITLE_PROMPT = "Give our conversation a title of at most six words. Write the title and nothing else."
TITLE_TOKENS = 24
MOST_WORDS = 9
_WORD = re.compile(r"\w+")
_LABEL = re.compile(r"^(?:#+\s*)?(?:\*\*)?title(?:\*\*)?\s*:\s*", re.IGNORECASE)
_TALK = re.compile(r"\b(?:title|conversation|sure|certainly|here is|here's|as an ai)\b|\bI\b", re.IGNORECASE)
_LONG = 4
"""Letters from which on a word says what a conversation is about."""


def first_title(said: Iterable[Message]) -> str:
    """The title, by rule, of a conversation that begins with this; empty where a person said none of it."""
    return next((title_of(message.text) for message in said if message.role == "user"), "")


def checked_title(text: str, *, said: str) -> str:
    """The title in what a model wrote, or empty where that is none.

    A small model often goes on with the conversation instead: a title is one short line without talk, and names
    something that was said.

    Args:
        text: what the model wrote.
        said: the conversation so far.
    """
    line = text.strip().partition("\n")[0]
    line = _LABEL.sub("", line).strip().strip("\"'“”«»*#").rstrip(".").strip()
    words = [word.lower() for word in _WORD.findall(line)]
    if not 2 <= len(words) <= MOST_WORDS or len(line) > TITLE_LENGTH or _TALK.search(line):
        return ""
    if line.endswith((":", "?", ",", "!")) or len(set(words)) * 2 <= len(words):
        return ""
    known = {word[:_LONG] for word in map(str.lower, _WORD.findall(said)) if len(word) >= _LONG}
    about = any(word[:_LONG] in known for word in words if len(word) >= _LONG)
    spaceless = not line.isascii() and any(char in said for char in line if not char.isascii())
    return line if about or spaceless else ""
