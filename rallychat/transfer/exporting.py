"""Conversations as text: JSON that can be imported again, with every branch, and Markdown of the branch in view."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import orjson

from rallychat.errors import NotFound
from rallychat.messages import ENDED_EARLY
from rallychat.store import Conversation, ConversationStore, Entire, Memory, StoredMessage

FORMAT: Final = "rallychat"
VERSION: Final = 1


def as_json(entire: Entire) -> dict[str, Any]:
    """One conversation with the messages of all its branches, and what is remembered of them."""
    conversation = entire.conversation
    return {
        "id": conversation.id,
        "title": conversation.title,
        "system": conversation.system,
        "model": conversation.model,
        "sampling": conversation.sampling.as_dict(),
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "pinned": conversation.pinned,
        "archived": conversation.archived,
        "folder": conversation.folder,
        "metadata": dict(conversation.metadata),
        "strategy": conversation.strategy,
        "budget": conversation.budget,
        "elsewhere": conversation.elsewhere,
        "tip": conversation.tip_id,
        "messages": [_message(row) for row in entire.messages],
        "memories": [_memory(memory) for memory in entire.memories],
    }


def _message(row: StoredMessage) -> dict[str, Any]:
    """A message; of how it ended, and what it took, what is known. One that still grows ends here."""
    known = {
        "finish_reason": "interrupted" if row.status == "running" else row.finish_reason,
        "error": row.error,
        "usage": row.usage and asdict(row.usage),
        "timings": row.timings and asdict(row.timings),
        "mark": row.mark,
    }
    return {
        "id": row.id,
        "parent": row.parent_id,
        "role": row.role,
        "model": row.model,
        "created_at": row.created_at.isoformat(),
        "parts": [{"kind": part.kind, "text": part.text} for part in row.parts],
        **{name: value for name, value in known.items() if value is not None},
    }


def _memory(memory: Memory) -> dict[str, Any]:
    """A version of the memory: the list is in their order."""
    return {
        "kind": memory.kind,
        "text": memory.text,
        "until": memory.until,
        "covers": memory.covers,
        "edited_by": memory.edited_by,
        "why": memory.why,
        "active": memory.active,
        "created_at": memory.created_at.isoformat() if memory.created_at else None,
    }


def document(written: Sequence[dict[str, Any]]) -> bytes:
    """The file."""
    whole = {"format": FORMAT, "version": VERSION, "conversations": written}
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_markdown(conversation: Conversation, rows: Sequence[StoredMessage]) -> str:
    """Title, then each message under the name of who said it; an answer that is not whole says why."""
    parts = [f"# {conversation.title or 'Conversation'}"]
    if conversation.system:
        parts.append(f"*System:* {conversation.system}")
    for row in rows:
        who = {"user": "You", "system": "System"}.get(row.role) or row.model or "Model"
        parts += [f"## {who}", row.text.strip(), _notice(row)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _notice(row: StoredMessage) -> str:
    if row.status == "running":
        return "*Still being written.*"
    told = ENDED_EARLY.get(row.finish_reason) if row.finish_reason else None
    return f"*{told}* {row.error or ''}".rstrip() if told else ""


async def everything(store: ConversationStore, *, markdown: bool = False) -> AsyncIterator[bytes]:
    """All conversations but those of the trash as one file, piece by piece: memory holds one conversation."""
    first = True
    yield b"" if markdown else b'{"format":"rallychat","version":1,"conversations":['
    for conversation_id in await store.library.every():
        with suppress(NotFound):  # deleted meanwhile
            if markdown:
                conversation = await store.get(conversation_id)
                said = as_markdown(conversation, await store.path(conversation.id)).encode()
            else:
                said = orjson.dumps(as_json(await store.library.entire(conversation_id)))
            yield said if first else (b"\n---\n\n" if markdown else b",\n") + said
            first = False
    yield b"" if markdown else b"]}\n"
