"""Conversations that come to be with messages in them: a branch that goes its own way, and what is brought in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.identity import current
from rallychat.store import codec, queries
from rallychat.store.contexts import copy_memories, memories_of
from rallychat.store.ids import new_id
from rallychat.store.items import new_row
from rallychat.store.tables import conversations, messages
from rallychat.store.types import Ending, Imported

_SETTINGS: Final = ("title", "system", "model", "sampling", "folder", "strategy", "budget", "elsewhere")
_SAID: Final = (
    *("role", "parts", "model", "status", "finish_reason", "error", "usage", "timings", "created_at", "mark"),
    *("span_key", "span_ids", "span_quoted"),
)
"""What a copy has of a message: not whose process wrote it, nor what names other messages."""


async def branch_off(db: AsyncConnection, conversation_id: str, message_id: str) -> dict[str, Any]:
    """The row of a new conversation of the branch up to and with a message: see `Library.fork`."""
    row = await queries.conversation_row(db, conversation_id)
    end = await queries.message_row(db, message_id, conversation_id=conversation_id)
    queries.refuse_running(end)
    now = datetime.now(UTC)
    made: dict[str, Any] = {"id": new_id("conv"), "listed": True, "metadata": {}, "tip_id": None}
    made |= {"created_at": now, "updated_at": now, **{name: row[name] for name in _SETTINGS}}
    columns = [messages.c[name] for name in ("id", *_SAID)]
    path = await db.execute(queries.path_query(conversation_id, message_id, columns))
    names: dict[str, str] = {}
    copies: list[dict[str, Any]] = []
    parent: str | None = None
    for said in path.mappings():
        place = new_row(made["id"], parent_id=parent, after=parent)
        copies.append(place | {name: said[name] for name in _SAID})
        parent = names[said["id"]] = place["id"]
    made["tip_id"] = parent
    await db.execute(insert(conversations).values(**made, user_id=current().id))
    versions = await copy_memories(db, made["id"], await memories_of(db, conversation_id), names)
    copies[-1]["report"] = codec.report_renamed(end["report"], names, versions)
    await db.execute(insert(messages), copies)
    return made


def rows_of(brought: Imported) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a conversation from elsewhere, and those of its messages.

    Raises:
        InvalidRequest: a text cannot be stored.
    """
    begun = brought.created_at or datetime.now(UTC)
    row: dict[str, Any] = {"id": new_id("conv"), "tip_id": None, "listed": True, "origin": brought.origin}
    row |= {"created_at": begun, "updated_at": brought.updated_at or begun, "deleted_at": brought.deleted_at}
    row |= {
        "pinned": brought.pinned,
        "archived": brought.archived,
        "folder": codec.folder_name(brought.folder),
    }
    row |= codec.settled(
        title=brought.title,
        system=brought.system,
        model=brought.model,
        sampling=brought.sampling,
        metadata=brought.metadata,
        strategy=brought.strategy,
        budget=brought.budget,
        elsewhere=brought.elsewhere,
    )
    rows: list[dict[str, Any]] = []
    for node in brought.messages:
        parent = None if node.parent is None else rows[node.parent]["id"]
        said = new_row(row["id"], parent_id=parent, after=rows[-1]["id"] if rows else None)
        said |= {"role": node.role, "parts": codec.parts_mended(node.parts), "status": "complete"}
        said |= {"model": node.model, "created_at": node.created_at or begun, "mark": node.mark}
        said |= codec.ending_columns(node.end or Ending()) if node.role == "assistant" else {}
        rows.append(said)
    if rows:
        row["tip_id"] = rows[-1 if brought.tip is None else brought.tip]["id"]
    return row, rows


async def take_in(
    db: AsyncConnection, row: Mapping[str, Any], rows: list[dict[str, Any]], brought: Imported
) -> None:
    """Stores the rows of a conversation from elsewhere, and its memories."""
    await db.execute(insert(conversations).values(**row, user_id=current().id))
    if rows:
        await db.execute(insert(messages), rows)
    names = {node.name: said["id"] for node, said in zip(brought.messages, rows, strict=True)}
    await copy_memories(db, row["id"], brought.memories, names)
