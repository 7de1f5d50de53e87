"""The token log: which token ids a conversation's prompt is made of. Pure: no engine, no tables, no HTTP.

Each message keeps the ids it added to the prompt (`TokenSpan`), under a key of what they depend on: model, template,
memory, and the exact text they stand for. While the key holds the ids are used again, so the next prompt is what was
evaluated before plus the new turn, to the token: history is never tokenised a second time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rallychat.messages import Message, Piece, Text
from rallychat.prompts import PromptTemplate, Rendered
from rallychat.store import StoredMessage, TokenSpan

SAID = "said"
"""Ends the key of ids that a model generated: they stand for its answer as it was said."""
EMPTY = Text("…")
"""What stands in the place of an excluded message whose exchange is pinned."""


def log_base(*facts: str) -> str:
    """What the keys of one log begin with: model, template, version of the memory, hashed."""
    return _hash("\0".join(facts))


def said_key(base: str) -> str:
    """The key of generated ids."""
    return f"{base}:{SAID}"


def text_key(base: str, pieces: Sequence[Piece]) -> str:
    """The key of tokenised ids. White space at the end does not count: some templates write it once answered."""
    text = "".join(f"{piece.start:d}{piece.special:d}{piece.text}" for piece in pieces)
    return f"{base}:{_hash(text.rstrip())}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def quoted_in(row: StoredMessage, base: str) -> str:
    """What was quoted in front of a message in this log; it stays there, for the ids hold it."""
    return row.span.quoted if row.span and row.span.key.startswith(f"{base}:") else ""


def as_shown(row: StoredMessage, base: str, *, blank: bool = False) -> Message:
    """A message as the model sees it in this log."""
    if blank:
        return Message(row.role, (EMPTY,))
    quoted = quoted_in(row, base)
    return Message(row.role, (Text(quoted), *row.parts)) if quoted else row.message


@dataclass(frozen=True, slots=True)
class Entry:
    """One part of the prompt: its ids where they are known, and the pieces to tokenise where not.

    `message_id` is None for the system prompt and the memory. Where `key` is empty the ids are not to be kept.
    """

    kind: Literal["system", "memory", "user", "assistant"]
    message_id: str | None
    pieces: tuple[Piece, ...]
    key: str
    ids: tuple[int, ...] | None = None
    quoted: str = ""

    @property
    def span(self) -> TokenSpan | None:
        """What to keep of it, once `ids` are known."""
        return None if self.ids is None or not self.key else TokenSpan(self.key, self.ids, self.quoted)

    def counted(self, ids: Sequence[int]) -> Entry:
        """The same with its ids."""
        return replace(self, ids=tuple(ids))


def entries(
    rows: Sequence[StoredMessage],
    *,
    system: str,
    memory: str = "",
    template: PromptTemplate,
    base: str,
    blank: Sequence[str] = (),
    goes_on: bool = False,
) -> list[Entry]:
    """The prompt of `rows`, entry by entry. Its last message is the user's, or an answer.

    Where the template makes message boundaries unknowable the whole prompt is one entry of the last message; but an
    answer that goes on is one of its own.

    Args:
        rows: the messages that stand in it.
        memory: of older ones.
        blank: ids of messages whose words are left out.
        goes_on: the answer that it ends with is not complete.
    """
    head = [Message.of("system", system)] if system else []
    hidden = frozenset(blank)
    messages = head + [as_shown(row, base, blank=row.id in hidden) for row in rows]
    rendered = template.render(messages, add_generation_prompt=rows[-1].role != "assistant", memory=memory)
    if not rendered.segmented:
        if goes_on and rows[-1].role == "assistant" and len(rows) > 1:
            return _going_on(rows, template.render(messages[:-1], memory=memory), base)
        pieces = rendered.chunks[0].pieces
        return [Entry(_kind(rows[-1]), None, pieces, text_key(base, pieces))]
    found: list[Entry] = []
    for chunk in rendered.chunks[
        : len(messages) + bool(memory)
    ]:  # one more would close an answer that goes on
        if chunk.message is None:
            found.append(Entry("memory", None, chunk.pieces, ""))
        elif chunk.message < len(head):
            found.append(Entry("system", None, chunk.pieces, ""))
        else:
            row = rows[chunk.message - len(head)]
            found.append(
                Entry(_kind(row), row.id, chunk.pieces, "")
                if row.id in hidden
                else _entry(row, chunk.pieces, base, rewritten=template.rewrites_history)
            )
    return found


def _going_on(rows: Sequence[StoredMessage], before: Rendered, base: str) -> list[Entry]:
    """What the last of the rows was asked with, and that answer as it was said: no template closes it."""
    asked = tuple(piece for chunk in before.chunks for piece in chunk.pieces)
    said = (Piece(rows[-1].text, special=False),)
    return [Entry(_kind(rows[-2]), None, asked, ""), _entry(rows[-1], said, base, rewritten=False)]


def _entry(row: StoredMessage, pieces: tuple[Piece, ...], base: str, *, rewritten: bool) -> Entry:
    key = text_key(base, pieces)
    span = row.span
    said = row.role == "assistant" and not rewritten and span is not None and span.key == said_key(base)
    if span is not None and (said or span.key == key):
        return Entry(_kind(row), row.id, pieces, span.key, span.ids, span.quoted)
    return Entry(_kind(row), row.id, pieces, key, None, quoted_in(row, base))


def _kind(row: StoredMessage) -> Literal["system", "user", "assistant"]:
    return "user" if row.role == "tool" else row.role
