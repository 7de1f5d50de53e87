"""The token log: which token ids a conversation's prompt is made of. Pure: no engine, no tables, no HTTP.

Each message keeps the ids it added to the prompt (`TokenSpan`), under a key that names everything those ids
depend on. While the key holds, the next prompt is what was evaluated before plus the new turn, so the engine's
cache is reused to the last token: history is never rendered or tokenised again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from rallychat.messages import Message, Piece, Role
from rallychat.prompts import PromptTemplate
from rallychat.store import StoredMessage


def log_key(*facts: str, first_kept: str | None) -> str:
    """Key of a log: model, template, system prompt, hashed; and the message it starts at (None: the first)."""
    digest = hashlib.blake2b("\0".join(facts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{digest}:{first_kept or ''}"


def first_kept(path: Sequence[StoredMessage], key: str) -> str | None:
    """Where the newest log of `key`'s model, template and system prompt starts; None: at the root."""
    base, _, _ = key.partition(":")
    on_path = {row.id for row in path}
    for row in reversed(path):
        if row.span is not None and row.span.key.startswith(f"{base}:"):
            _, _, start = row.span.key.partition(":")
            return start if start in on_path else None
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One message's part of the prompt: its ids where they are known, and the pieces to tokenise where not.

    `message_id` is None for the system prompt, which is tokenised each time.
    """

    message_id: str | None
    role: Role
    pieces: tuple[Piece, ...]
    ids: tuple[int, ...] | None = None


def entries(path: Sequence[StoredMessage], *, system: str, template: PromptTemplate, key: str) -> list[Entry]:
    """The prompt of `path`, entry by entry. Its last message is the user's, or an answer to be continued.

    Where the template makes message boundaries unknowable the whole prompt is one entry of the last message.
    """
    head = [Message.of("system", system)] if system else []
    messages = head + [row.message for row in path]
    continues = path[-1].role == "assistant"
    rendered = template.render(messages, add_generation_prompt=not continues)
    if not rendered.segmented:
        return [Entry(path[-1].id, path[-1].role, rendered.chunks[0].pieces)]
    chunks = rendered.chunks[: len(messages)]  # one more would be what closes an answer that goes on
    rows: list[StoredMessage | None] = [None] * len(head) + list(path)
    return [
        Entry(row.id, row.role, chunk.pieces, row.span.ids if row.span and row.span.key == key else None)
        if row
        else Entry(None, "system", chunk.pieces)
        for row, chunk in zip(rows, chunks, strict=True)
    ]
