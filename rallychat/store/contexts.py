"""How the context of a conversation is kept: marks of messages, versions of memories, search in what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import Conflict, NotFound
from rallychat.store import codec, queries, search
from rallychat.store.database import Database
from rallychat.store.tables import conversations, memories, messages
from rallychat.store.types import Mark, Memory, StoredMessage
from rallychat.store.whole import whole

Versions = tuple[tuple[int, bool], ...]
"""Every version of a conversation's memory by its number, oldest first, and whether it is in force."""

_SAID = tuple(column for column in messages.c if column is not messages.c.report)


class ContextStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def mark(self, message_id: str, mark: Mark | None) -> None:
        """Pins or excludes a message; None takes that back."""
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id)
            await db.execute(update(messages).where(messages.c.id == message_id).values(mark=mark))
            await queries.changed(db, conversations.c.id == row["conversation_id"])

    @whole
    async def keep_asked(self, conversation_id: str, asked: Mapping[str, Any] | None) -> None:
        """Keeps how the newest answer was asked for; None: as the conversation is set."""
        this = (conversations.c.id == conversation_id) & queries.mine()
        async with self._database.write("growing") as db:
            await db.execute(update(conversations).where(this).values(asked=asked))

    @whole
    async def memories(self, conversation_id: str) -> list[Memory]:
        """Every version, oldest first, those that were undone among them."""
        async with self._database.read() as db:
            await queries.conversation_row(db, conversation_id)
            return await memories_of(db, conversation_id)

    @whole
    async def remember(
        self, conversation_id: str, memory: Memory, *, known: Versions | None = None
    ) -> Memory:
        """Stores a memory as the newest version, and returns it with its number.

        The next prompt of a branch through `memory.until` has it: this is the moment at which prompts are swapped.

        Args:
            known: the versions that it was made from; None: whatever there is.

        Raises:
            NotFound: the conversation, or the message it belongs to, is gone.
            Conflict: there are others than those that are `known`.
        """
        async with self._database.write() as db:
            await queries.conversation_row(db, conversation_id)
            await _check_versions(db, conversation_id, known)
            await queries.message_row(db, memory.until, conversation_id=conversation_id)
            mine = memories.c.conversation_id == conversation_id
            newest = (await db.scalars(select(func.max(memories.c.version)).where(mine))).one() or 0
            stored = replace(memory, version=newest + 1, created_at=datetime.now(UTC))
            await db.execute(insert(memories).values(conversation_id=conversation_id, **_columns(stored)))
        return stored

    @whole
    async def set_active(
        self, conversation_id: str, version: int, *, active: bool, known: Versions | None = None
    ) -> Memory:
        """Undoes one version of the memory, or takes that back. `known`: as for `remember`."""
        this = (memories.c.conversation_id == conversation_id) & (memories.c.version == version)
        async with self._database.write() as db:
            await queries.conversation_row(db, conversation_id)
            await _check_versions(db, conversation_id, known)
            done = await db.execute(update(memories).where(this).values(active=active))
            if not done.rowcount:
                raise NotFound("memory", str(version))
            row = (await db.execute(select(memories).where(this))).mappings().one()
            return codec.memory_from(row)

    @whole
    async def search(
        self, asked: str, *, conversation_id: str | None = None, limit: int = 200
    ) -> list[tuple[str, float]]:
        """Messages that share words with `asked`, as (id, score), the best first; in every branch.

        Args:
            conversation_id: where; None searches every conversation of this person.
        """
        words = search.words(asked)
        if not words:
            return []
        async with self._database.read() as db:
            return await self._database.search(db, words, conversation_id=conversation_id, limit=limit)

    @whole
    async def elsewhere(self, asked: str, *, but: str, limit: int) -> list[tuple[StoredMessage, str]]:
        """What this person's other conversations say of it, with their titles, the best first.

        Nothing of conversations that are deleted or archived, of branches that were left, and nothing excluded.
        """
        words = search.words(asked)
        if not words:
            return []
        async with self._database.read() as db:
            hits = await self._database.search(db, words, conversation_id=None, limit=4 * limit)
            place = {message_id: at for at, (message_id, _) in enumerate(hits)}
            rows = await db.execute(
                select(*_SAID, conversations.c.title, conversations.c.tip_id)
                .join(conversations, conversations.c.id == messages.c.conversation_id)
                .where(
                    messages.c.id.in_(list(place)),
                    conversations.c.id != but,
                    queries.mine(),
                    conversations.c.deleted_at.is_(None),
                    conversations.c.archived.is_(False),
                    or_(messages.c.mark.is_(None), messages.c.mark != "exclude"),
                )
            )
            found = sorted(rows.mappings(), key=lambda row: place[row["id"]])[:limit]
            in_view = set()
            for chat, tip in {row["conversation_id"]: row["tip_id"] for row in found}.items():
                in_view |= set(await db.scalars(queries.path_query(chat, tip, [messages.c.id])))
        return [(codec.message_from(row), row["title"]) for row in found if row["id"] in in_view]


async def memory_of(
    db: AsyncConnection, conversation_id: str, branch: Sequence[StoredMessage]
) -> Memory | None:
    """The memory in force on a branch. Nearly always the newest of the conversation: others are read where not."""
    active = (memories.c.conversation_id == conversation_id) & memories.c.active
    last = select(memories).where(active).order_by(memories.c.version.desc()).limit(1)
    row = (await db.execute(last)).mappings().one_or_none()
    ids = [message.id for message in branch]
    if row is None:
        return None
    if newest([memory := codec.memory_from(row)], ids):
        return memory
    return newest(await memories_of(db, conversation_id), ids)


async def memories_of(db: AsyncConnection, conversation_id: str) -> list[Memory]:
    """Every version of a conversation's memory, oldest first."""
    mine = select(memories).where(memories.c.conversation_id == conversation_id)
    rows = await db.execute(mine.order_by(memories.c.version))
    return [codec.memory_from(row) for row in rows.mappings()]


async def copy_memories(
    db: AsyncConnection, conversation_id: str, made: Sequence[Memory], names: Mapping[str, str]
) -> dict[int, int]:
    """Gives a new conversation the versions that are made of its messages alone, numbered anew in their order.

    Args:
        names: what its messages are called in `made`, and what they are called here.

    Returns:
        The new number of each version that was taken.
    """
    now = datetime.now(UTC)
    taken = [memory for memory in made if names.keys() >= {memory.until, *memory.covers}]
    renamed = [
        replace(
            memory,
            version=version,
            until=names[memory.until],
            covers=tuple(names[name] for name in memory.covers),
            created_at=memory.created_at or now,
        )
        for version, memory in enumerate(taken, 1)
    ]
    if renamed:
        rows = [{"conversation_id": conversation_id, **_columns(memory)} for memory in renamed]
        await db.execute(insert(memories), rows)
    return {old.version: new.version for old, new in zip(taken, renamed, strict=True)}


async def _check_versions(db: AsyncConnection, conversation_id: str, known: Versions | None) -> None:
    if known is not None:
        mine = select(memories.c.version, memories.c.active).where(
            memories.c.conversation_id == conversation_id
        )
        rows = await db.execute(mine.order_by(memories.c.version))
        if tuple((version, active) for version, active in rows) != known:
            message = "What is remembered of this conversation has changed meanwhile."
            raise Conflict(message, hint="look at it again")


def _columns(memory: Memory) -> dict[str, Any]:
    """Its columns; a model's text is mended."""
    names = ("version", "until", "kind", "edited_by", "active", "created_at")
    columns: dict[str, Any] = {name: getattr(memory, name) for name in names}
    return columns | {
        "text": codec.mended(memory.text),
        "why": codec.mended(memory.why),
        "covers": list(memory.covers),
    }


def versions_of(made: Sequence[Memory]) -> Versions:
    """Which versions these are; to be given back as `known` with what is made from them."""
    return tuple((memory.version, memory.active) for memory in made)


def newest(versions: Sequence[Memory], on_path: Sequence[str]) -> Memory | None:
    """The memory of the branch with these message ids: the newest version in force that was made of some of them."""
    there = set(on_path)
    found = (m for m in reversed(versions) if m.active and m.until in there and there.issuperset(m.covers))
    return next(found, None)
