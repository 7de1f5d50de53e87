"""Turns raw model text into events. Knows the family's tags; never sees engines, HTTP or rows."""

from __future__ import annotations

from rallychat.catalog.types import ReasoningTags
from rallychat.messages import Part, Reasoning, ReasoningDelta, Text, TextDelta

Delta = TextDelta | ReasoningDelta


class AnswerParser:
    """Splits an answer into what is thought and what is said, however the text is cut on its way here.

    Args:
        tags: the family's reasoning tags, or None where it has none; then everything is said.
        resume: parts of the answer that came before (it is being continued).
    """

    def __init__(self, tags: ReasoningTags | None, *, resume: tuple[Part, ...] = ()) -> None:
        self._tags = tags
        self._held = ""
        self._parts: list[tuple[type[Text | Reasoning], list[str]]] = [(type(p), [p.text]) for p in resume]
        resumed_inside = bool(resume) and isinstance(resume[-1], Reasoning)
        self._inside = tags is not None and (resumed_inside or (tags.starts_open and not resume))
        self._trim = False
        self._straight = tags.straight if tags is not None and not resume else ""

    @property
    def thinking(self) -> bool:
        """What comes next is thought, as far as is known."""
        return self._inside

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything parsed so far."""
        return tuple(kind("".join(texts)) for kind, texts in self._parts)

    def feed(self, text: str) -> list[Delta]:
        """More raw text; returns what is now certain."""
        if self._tags is None:
            return self._emit(text)
        out: list[Delta] = []
        self._held += text
        if self._straight:
            if self._straight.startswith(self._held) and self._held != self._straight:
                return out
            self._held = self._held.removeprefix(self._straight)
            self._straight = ""
        while True:
            tag = self._tags.close if self._inside else self._tags.open
            before, found, after = self._held.partition(tag)
            if not found:
                keep = _overlap(self._held, tag)
                ready = self._held[: len(self._held) - keep]
                self._held = self._held[len(ready) :]
                return out + self._emit(ready)
            out += self._emit(before)
            self._held = after
            self._inside = not self._inside
            self._trim = True

    def finish(self) -> list[Delta]:
        """The text has ended: what was held back is not a tag."""
        held, self._held = self._held, ""
        return self._emit(held)

    def _emit(self, text: str) -> list[Delta]:
        if self._trim:  # the line breaks around a tag belong to the tag
            text = text.lstrip("\n")
            self._trim = not text
        if not text:
            return []
        kind: type[Text | Reasoning] = Reasoning if self._inside else Text
        if self._parts and self._parts[-1][0] is kind:
            self._parts[-1][1].append(text)
        else:
            self._parts.append((kind, [text]))
        return [ReasoningDelta(text) if self._inside else TextDelta(text)]


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that could be the beginning of `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0
