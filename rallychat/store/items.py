"""Messages that are put into a conversation, or taken out of it, without anybody answering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.messages import Message
from rallychat.store import codec, queries
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.tables import conversations, messages
from rallychat.store.types import StoredMessage
from rallychat.store.whole import whole

_NO_COLUMNS: dict[str, Any] = dict.fromkeys(messages.c.keys())


class ItemStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def append(
        self, conversation_id: str, said: Sequence[Message], *, title: str = ""
    ) -> list[StoredMessage]:
        """Puts messages at the end of the branch in view; its last becomes the tip.

        Args:
            title: the conversation's, if it has none.

        Raises:
            Conflict: that branch is still being written.
        """
        async with self._database.write() as db:
            row = await queries.conversation_row(db, conversation_id)
            if row["tip_id"] is not None:
                await queries.check_parent(db, row["tip_id"], conversation_id)
            rows = await insert_chain(db, conversation_id, row["tip_id"], said)
            await queries.set_tip(db, conversation_id, rows[-1]["id"], at=datetime.now(UTC))
            await entitle(db, row, title)
        return [codec.message_from(row) for row in rows]

    @whole
    async def remove(
        self, conversation_id: str, message_id: str, *, which: Callable[[StoredMessage], Collection[int]]
    ) -> None:
        """Takes parts out of a message, and with them what is quoted in this conversation.

        A message that has none left goes; what followed it follows its parent.

        Args:
            which: their indices in the message as it is now.

        Raises:
            NotFound: there is no such message. Conflict: it is still being written.
        """
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id, conversation_id=conversation_id)
            queries.refuse_running(row)
            left = _without(row["parts"], which(codec.message_from(row)))
            await _forget_quotes(db, conversation_id)
            if left:
                shorter = {"parts": left, **codec.span_columns(None)}
                await db.execute(update(messages).where(messages.c.id == message_id).values(**shorter))
                await queries.changed(db, conversations.c.id == conversation_id)
            else:
                await take_out(db, row)


def _without(parts: Sequence[dict[str, str]], gone: Collection[int]) -> list[dict[str, str]]:
    """What is left of a message. Where others follow an empty part holds the place: items are named by theirs."""
    left = [part | {"text": ""} if index in gone else part for index, part in enumerate(parts)]
    if len(parts) - 1 in gone:
        while left and not left[-1]["text"]:
            left.pop()
    return left


async def _forget_quotes(db: AsyncConnection, conversation_id: str) -> None:
    """Nothing is quoted in front of messages any more: quotes may hold what is taken out."""
    quoted = (messages.c.conversation_id == conversation_id, messages.c.span_quoted.is_not(None))
    await db.execute(update(messages).where(*quoted).values(**codec.span_columns(None)))


async def entitle(db: AsyncConnection, conversation: dict[str, Any], title: str) -> None:
    """Gives a conversation, whose row this is, a title if it has none; an empty one is none."""
    if title and not conversation["title"]:
        conversation["title"] = codec.checked(title, param="title")
        this = conversations.c.id == conversation["id"]
        await db.execute(update(conversations).where(this).values(title=conversation["title"]))


async def insert_chain(
    db: AsyncConnection, conversation_id: str, parent_id: str | None, said: Sequence[Message]
) -> list[dict[str, Any]]:
    """Stores messages below `parent_id`, each below the one before; returns their rows."""
    newest = (await db.scalars(queries.newest_query(conversation_id))).one()
    rows = chain(conversation_id, parent_id, said, after=newest)
    if rows:
        await db.execute(insert(messages), rows)
    return rows


def chain(
    conversation_id: str, parent_id: str | None, said: Sequence[Message], *, after: str | None
) -> list[dict[str, Any]]:
    """The rows of messages below `parent_id`, each below the one before; `after`: the conversation's newest message.

    Raises:
        InvalidRequest: a text cannot be stored.
    """
    rows: list[dict[str, Any]] = []
    for message in said:
        row = new_row(conversation_id, parent_id=parent_id, after=after)
        row |= {"role": message.role, "parts": codec.parts_checked(message.parts), "status": "complete"}
        row |= {"finish_reason": "stop"} if message.role == "assistant" else {}
        rows.append(row)
        after = parent_id = row["id"]
    return rows


def new_row(conversation_id: str, *, parent_id: str | None, after: str | None) -> dict[str, Any]:
    """A message's columns, of which its place is known; `after`: the conversation's newest message."""
    place = {"id": new_id("msg", after=after), "conversation_id": conversation_id, "parent_id": parent_id}
    return _NO_COLUMNS | place | {"created_at": datetime.now(UTC)}


async def take_out(db: AsyncConnection, row: dict[str, Any]) -> None:
    """Deletes one message; its children become its parent's, a view that ended with it ends before it."""
    this, parent = row["id"], row["parent_id"]
    await db.execute(update(messages).where(messages.c.parent_id == this).values(parent_id=parent))
    tip = conversations.c.tip_id == this
    await db.execute(update(conversations).where(tip).values(tip_id=parent))
    await db.execute(delete(messages).where(messages.c.id == this))
    await queries.changed(db, conversations.c.id == row["conversation_id"])


async def is_followed(db: AsyncConnection, message_id: str) -> bool:
    """Whether messages hang below this one."""
    below = select(messages.c.id).where(messages.c.parent_id == message_id).limit(1)
    return (await db.scalars(below)).first() is not None
