"""What a person does with conversations as a whole: lists, files, deletes, finds, copies and takes them in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import NotFound
from rallychat.store import codec, copies, queries, search
from rallychat.store.contexts import memories_of
from rallychat.store.database import Database
from rallychat.store.tables import conversations, messages
from rallychat.store.types import Conversation, Entire, Hit, Imported, StoredMessage
from rallychat.store.whole import whole
from rallychat.unset import UNSET, Unset

MOST_HITS = 200
"""Places a search finds at most, over all its pages."""
_AROUND = 70
_COLUMNS = tuple(column for column in messages.c if column.name not in ("report", "span_ids"))


@dataclass(frozen=True, slots=True)
class Shelf:
    """Which conversations are listed. None: it does not matter."""

    pinned: bool | None = None
    archived: bool | None = False
    folder: str | None = None
    filed: bool | None = None
    """In a folder, whichever."""
    trash: bool = False


class Library:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def list(
        self, shelf: Shelf = Shelf(), *, limit: int = 50, before: str | None = None
    ) -> Sequence[Conversation]:
        """At most `limit` conversations of a shelf, the last active first; `before` (an id) goes on after that one."""
        async with self._database.read() as db:
            after = None if before is None else await _anywhere(db, before)
            rows = await db.execute(
                _on(queries.recent_query(after=after, trash=shelf.trash), shelf).limit(limit)
            )
            return [codec.conversation_from(dict(row)) for row in rows.mappings()]

    @whole
    async def every(self) -> Sequence[str]:
        """The ids of all conversations that are listed, archived ones too, the last active first; none of the trash."""
        ids = queries.recent_query(after=None).with_only_columns(conversations.c.id)
        async with self._database.read() as db:
            return [*await db.scalars(ids)]

    @whole
    async def folders(self, *, archived: bool | None = None) -> Sequence[str]:
        """The folders there are: those that hold something, by name. `archived`: those that hold such a one."""
        c = conversations.c
        named = (
            select(c.folder).where(queries.mine(), c.folder.is_not(None), c.deleted_at.is_(None)).distinct()
        )
        if archived is not None:
            named = named.where(c.archived.is_(archived))
        async with self._database.read() as db:
            return [name for name in await db.scalars(named.order_by(c.folder)) if name]

    @whole
    async def file(
        self,
        conversation_id: str,
        *,
        pinned: bool | Unset = UNSET,
        archived: bool | Unset = UNSET,
        folder: str | Unset | None = UNSET,
    ) -> Conversation:
        """Pins, archives or files it, as given."""
        given: dict[str, Any] = {}
        if pinned is not UNSET:
            given["pinned"] = pinned
        if archived is not UNSET:
            given["archived"] = archived
        if folder is not UNSET:
            given["folder"] = codec.folder_name(folder)
        async with self._database.write() as db:
            row = await queries.conversation_row(db, conversation_id)
            if given:
                this = conversations.c.id == conversation_id
                await db.execute(update(conversations).where(this).values(**given))
        return codec.conversation_from(row | given)

    @whole
    async def discard(self, conversation_id: str) -> None:
        """Puts a conversation into the trash: it can be restored, and nothing else."""
        async with self._database.write() as db:
            await queries.conversation_row(db, conversation_id)
            this = conversations.c.id == conversation_id
            await db.execute(update(conversations).where(this).values(deleted_at=datetime.now(UTC)))

    @whole
    async def restore(self, conversation_id: str) -> Conversation:
        """Takes it out of the trash; one that is not there stays as it is."""
        async with self._database.write() as db:
            row = await _anywhere(db, conversation_id)
            this = conversations.c.id == conversation_id
            await db.execute(update(conversations).where(this).values(deleted_at=None))
        return codec.conversation_from(row | {"deleted_at": None})

    @whole
    async def erase(self, conversation_id: str) -> None:
        """Deletes one for good, in the trash or not: messages, what is found of them, links."""
        async with self._database.write() as db:
            await _anywhere(db, conversation_id)
            await _erase(db, conversation_id)

    async def empty(self, *, days: float = 0, everybody: bool = False) -> int:
        """Deletes for good what has been in the trash for that many days; returns how many.

        Each in a transaction of its own: who writes meanwhile waits for one conversation, not for all.
        """
        old = conversations.c.deleted_at <= datetime.now(UTC) - timedelta(days=days)
        which = old if everybody else and_(old, queries.mine())
        return sum([await self._erase_if(which, one) for one in await self._ids(which)])

    async def end_chains(self, *, days: float) -> int:
        """Deletes for good everybody's chains of responses in no list that nobody went on with for so many days."""
        c = conversations.c
        which = and_(c.listed.is_(False), c.updated_at <= datetime.now(UTC) - timedelta(days=days))
        return sum([await self._erase_if(which, one) for one in await self._ids(which)])

    @whole
    async def _ids(self, which: ColumnElement[bool]) -> Sequence[str]:
        async with self._database.read() as db:
            return (await db.scalars(select(conversations.c.id).where(which))).all()

    @whole
    async def _erase_if(self, which: ColumnElement[bool], conversation_id: str) -> bool:
        """Deletes one for good, unless it was taken out of the trash, or gone on with, meanwhile."""
        this = (
            select(conversations.c.id).where(which, conversations.c.id == conversation_id).with_for_update()
        )
        async with self._database.write() as db:
            still = (await db.scalars(this)).first() is not None
            if still:
                await _erase(db, conversation_id)
        return still

    @whole
    async def search(self, asked: str, *, limit: int = 20, offset: int = 0) -> Sequence[Hit]:
        """Where the words of `asked` stand, the best first; titles before messages.

        A word counts as found where it begins, or is part of, another: text without spaces is found so.
        Archived conversations are searched, the trash is not.
        """
        words = [word for word in (word.strip("\"'.,;:!?()[]") for word in folded(asked).split()) if word]
        codec.checked(asked, param="search")
        if not words:
            return []
        async with self._database.read() as db:
            titled = await self._titled(db, words)
            ranked = await self._database.search(
                db, search.words(asked), conversation_id=None, limit=MOST_HITS, every=True
            )
            found = await self._messages(db, words, [message_id for message_id, _ in ranked])
        hits = [Hit(one, None, *snippet(one.title, words)) for one in titled]
        hits += [Hit(one, message, *snippet(message.text, words)) for one, message in found]
        return hits[:MOST_HITS][offset : offset + limit]

    async def _titled(self, db: AsyncConnection, words: Sequence[str]) -> Sequence[Conversation]:
        has = [conversations.c.title.ilike(f"%{_literal(word)}%", escape="\\") for word in words]
        rows = await db.execute(queries.recent_query(after=None).where(*has).limit(20))
        return [codec.conversation_from(dict(row)) for row in rows.mappings()]

    async def _messages(
        self, db: AsyncConnection, words: Sequence[str], ranked: Sequence[str]
    ) -> Sequence[tuple[Conversation, StoredMessage]]:
        """By rank those that hold every word as it stands or by its stem, then the others, the newest first."""
        home = conversations.c.id == messages.c.conversation_id
        alive = (queries.mine(), conversations.c.deleted_at.is_(None), conversations.c.listed)
        by_rank = select(*_COLUMNS).where(messages.c.id.in_(ranked), exists().where(home, *alive))
        rows = [*(await db.execute(by_rank)).mappings()] if ranked else []
        if len(ranked) < MOST_HITS:  # else there is no room for what the index does not know
            text = cast(messages.c.parts, Text)
            has = [text.ilike(f"%{_literal(word)}%", escape="\\") for word in words]
            read = select(*_COLUMNS).join(conversations, home).where(*alive)
            newest = read.where(messages.c.status == "complete", *has).order_by(messages.c.id.desc())
            rows += [*(await db.execute(newest.limit(MOST_HITS))).mappings()]
        place = {message_id: at for at, message_id in enumerate(ranked)}
        found: dict[str, StoredMessage] = {}
        for row in rows:
            message = codec.message_from({**row, "span_ids": None})
            said = folded(message.text)
            if all(word in said or _stem(word) in said for word in words):
                found[message.id] = message
        here = conversations.c.id.in_({message.conversation_id for message in found.values()})
        of = {row["id"]: row for row in (await db.execute(select(conversations).where(here))).mappings()}
        ordered = sorted(found.values(), key=lambda one: one.id, reverse=True)
        ordered.sort(key=lambda one: place.get(one.id, len(place)))
        return [(codec.conversation_from(dict(of[one.conversation_id])), one) for one in ordered]

    @whole
    async def fork(self, conversation_id: str, message_id: str) -> Conversation:
        """A new conversation of the branch up to and with a message, with the same settings."""
        async with self._database.write() as db:
            return codec.conversation_from(await copies.branch_off(db, conversation_id, message_id))

    @whole
    async def take_in(self, brought: Imported) -> Conversation | None:
        """Stores a conversation from elsewhere; None where it is here already, in the trash too."""
        codec.checked(brought.origin, param="origin")
        row, rows = copies.rows_of(brought)
        c = conversations.c
        async with self._database.write() as db:
            itself = c.id == brought.origin.removeprefix("rallychat:")  # our own export of what is still here
            same = select(c.id).where(queries.mine(), or_(itself, c.origin == brought.origin)).limit(1)
            if (await db.scalars(same)).first() is not None:
                return None
            await copies.take_in(db, row, rows, brought)
        return codec.conversation_from(row)

    @whole
    async def entire(self, conversation_id: str) -> Entire:
        """One conversation with all its messages and memories, as they are at one moment."""
        here = select(*_COLUMNS).where(messages.c.conversation_id == conversation_id).order_by(messages.c.id)
        async with self._database.read() as db:
            row = await queries.conversation_row(db, conversation_id)
            said = (await db.execute(here)).mappings()
            return Entire(
                codec.conversation_from(row),
                tuple(codec.message_from({**one, "span_ids": None}) for one in said),
                tuple(await memories_of(db, conversation_id)),
            )


def folded(text: str) -> str:
    """The text without case and accents, letter for letter: every place is where it was."""
    return "".join(map(_folded, text))


@lru_cache(4096)
def _folded(letter: str) -> str:
    apart = unicodedata.normalize("NFKD", letter)
    base, marks = apart[0], apart[1:]
    plain = base if marks and all(map(unicodedata.combining, marks)) else letter
    low = plain.lower()
    return low if len(low) == 1 else plain


def snippet(text: str, words: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """What stands around the first of the words, on one line, and where the words are in it."""
    low = folded(text)
    places = [at for word in words if (at := _find(low, word)) >= 0]
    first = min(places, default=0)
    start = max(0, first - _AROUND)
    if start and (space := text.find(" ", start, first)) >= 0:
        start = space + 1
    end = min(len(text), start + 3 * _AROUND)
    shown = "".join(" " if letter.isspace() else letter for letter in text[start:end])
    here = low[start:end]
    marks: set[tuple[int, int]] = set()
    for word in words:
        form = word if word in here else _stem(word)
        at = here.find(form)
        while at >= 0:
            marks.add((at, at + len(form)))
            at = here.find(form, at + len(form))
    before, after = "…" if start else "", "…" if end < len(text) else ""
    apart: list[tuple[int, int]] = []
    for begin, stop in sorted(marks):
        if not apart or begin + len(before) >= apart[-1][1]:
            apart.append((begin + len(before), stop + len(before)))
    return f"{before}{shown}{after}", tuple(apart)


def _find(low: str, word: str) -> int:
    at = low.find(word)
    return at if at >= 0 else low.find(_stem(word))


def _stem(word: str) -> str:
    """A word without an English ending, roughly: "fishes" is found as "fish", and the other way round."""
    for ending in ("ing", "es", "ed", "s"):
        if word.isascii() and word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _literal(word: str) -> str:
    """For LIKE, in JSON."""
    quoted = codec.to_json(word)[1:-1]
    return quoted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _on(query: Any, shelf: Shelf) -> Any:
    c = conversations.c
    for column, wanted in ((c.pinned, shelf.pinned), (c.archived, shelf.archived)):
        if wanted is not None and not shelf.trash:
            query = query.where(column.is_(wanted))
    if shelf.filed is not None:
        query = query.where(c.folder.is_not(None) if shelf.filed else c.folder.is_(None))
    return query if shelf.folder is None else query.where(c.folder == shelf.folder)


async def _anywhere(db: AsyncConnection, conversation_id: str) -> dict[str, Any]:
    """The row, in the trash or not."""
    if codec.is_id(conversation_id):
        this = conversations.c.id == conversation_id
        row = (await db.execute(select(conversations).where(this, queries.mine()))).mappings().one_or_none()
        if row is not None:
            return dict(row)
    raise NotFound("conversation", conversation_id)


async def _erase(db: AsyncConnection, conversation_id: str) -> None:
    await db.execute(delete(messages).where(messages.c.conversation_id == conversation_id))
    await db.execute(delete(conversations).where(conversations.c.id == conversation_id))
