"""Links that show a branch to whoever has them, and personas: small things a person keeps by name."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.catalog.types import Sampling
from rallychat.errors import InvalidRequest, NotFound
from rallychat.identity import acting_as, current
from rallychat.messages import Part
from rallychat.store import codec, queries
from rallychat.store.account_tables import users
from rallychat.store.branches import Branches
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.tables import conversations, personas, shares
from rallychat.store.types import Conversation, Persona, Share, StoredMessage
from rallychat.store.whole import whole
from rallychat.unset import UNSET, Unset


class ShareStore:
    """Made by `ConversationStore`, whose promises hold here too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._branches = Branches()

    @whole
    async def make(self, conversation_id: str, *, message_id: str | None = None) -> Share:
        """A link to the branch up to a message, the newest in view if none is given. What follows is not shown.

        Raises:
            Conflict: that message is still being written. InvalidRequest: there is none.
        """
        async with self._database.write() as db:
            row = await queries.conversation_row(db, conversation_id)
            tip = message_id or row["tip_id"]
            if tip is None:
                raise InvalidRequest("There is nothing to share yet.", hint="say something first")
            last = await queries.message_row(db, tip, conversation_id=conversation_id)
            queries.refuse_running(last)
            length = sum(len(part.text) for part in codec.message_from(last).parts)
            made = Share(new_id("share"), conversation_id, tip, secrets.token_urlsafe(32), datetime.now(UTC))
            columns = {name: getattr(made, name) for name in Share.__slots__}
            await db.execute(insert(shares).values(**columns, length=length, user_id=current().id))
        return made

    @whole
    async def list(self, conversation_id: str | None = None) -> Sequence[Share]:
        """Links that work, of one conversation or all, the oldest first."""
        alive = (shares.c.user_id == current().id, conversations.c.deleted_at.is_(None))
        found = (
            select(shares).join(conversations, conversations.c.id == shares.c.conversation_id).where(*alive)
        )
        async with self._database.read() as db:
            if conversation_id is not None:
                await queries.conversation_row(db, conversation_id)
                found = found.where(shares.c.conversation_id == conversation_id)
            rows = (await db.execute(found.order_by(shares.c.id))).mappings()
            return [Share(**{name: row[name] for name in Share.__slots__}) for row in rows]

    @whole
    async def revoke(self, share_id: str) -> None:
        """Ends a link for good."""
        this = (shares.c.id == share_id, shares.c.user_id == current().id)
        async with self._database.write() as db:
            if not codec.is_id(share_id) or not (await db.execute(delete(shares).where(*this))).rowcount:
                raise NotFound("share", share_id)

    @whole
    async def read(self, token: str) -> tuple[Conversation, Sequence[StoredMessage]]:
        """What a link shows, whoever asks.

        Raises:
            NotFound: nothing, also while its conversation is in the trash, or its owner disabled.
        """
        async with self._database.read() as db:
            known = len(token) <= 64 and token.isascii() and token.isprintable()
            held = await db.execute(select(shares).where(shares.c.token == token)) if known else None
            row = held.mappings().one_or_none() if held else None
            if row is None or await _is_shut_out(db, row["user_id"]):
                raise NotFound("shared conversation", "this link")
            with acting_as(row["user_id"]):
                whose = await queries.conversation_row(db, row["conversation_id"])
                branch = await self._branches.read(db, whose, row["tip_id"])
        if not branch:
            raise NotFound("shared conversation", "this link")
        return codec.conversation_from(whose), [*branch[:-1], _as_it_was(branch[-1], row["length"])]


def _as_it_was(tip: StoredMessage, length: int | None) -> StoredMessage:
    """The last message without what was said since, should it be an answer that was continued."""
    if length is None or (tip.status == "complete" and sum(len(part.text) for part in tip.parts) <= length):
        return tip
    parts: list[Part] = []
    for part in tip.parts:
        if length > 0:
            parts.append(replace(part, text=part.text[:length]))
        length -= len(part.text)
    unknown = dict.fromkeys(("error", "usage", "timings", "report", "span"))
    # only an answer that was not whole is continued
    ended = replace(tip, parts=tuple(parts), status="complete", finish_reason="cancelled")
    return replace(ended, **unknown)  # type: ignore[arg-type]


async def _is_shut_out(db: AsyncConnection, user_id: str) -> bool:
    return bool((await db.scalars(select(users.c.disabled).where(users.c.id == user_id))).first())


class PersonaStore:
    """Made by `ConversationStore`, whose promises hold here too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def list(self) -> Sequence[Persona]:
        """All of this person, by name."""
        async with self._database.read() as db:
            rows = await db.execute(select(personas).where(personas.c.user_id == current().id))
            return sorted((_persona(row) for row in rows.mappings()), key=lambda one: one.name.casefold())

    @whole
    async def get(self, persona_id: str) -> Persona:
        """One of them."""
        async with self._database.read() as db:
            return _persona(await _row(db, persona_id))

    @whole
    async def create(
        self,
        *,
        name: str,
        system: str = "",
        model: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> Persona:
        """A new one."""
        row: dict[str, Any] = {"id": new_id("persona"), "created_at": datetime.now(UTC), "name": _name(name)}
        row |= codec.settled(title=UNSET, system=system, model=model, sampling=sampling, metadata=UNSET)
        async with self._database.write() as db:
            await db.execute(insert(personas).values(**row, user_id=current().id))
        return _persona(row)

    @whole
    async def update(
        self,
        persona_id: str,
        *,
        name: str | Unset = UNSET,
        system: str | Unset = UNSET,
        model: str | Unset | None = UNSET,
        sampling: Sampling | Unset = UNSET,
    ) -> Persona:
        """Changes what is given. Conversations that began with it stay as they are."""
        given = codec.settled(title=UNSET, system=system, model=model, sampling=sampling, metadata=UNSET)
        if name is not UNSET:
            given["name"] = _name(name)
        async with self._database.write() as db:
            row = await _row(db, persona_id)
            if given:
                await db.execute(update(personas).where(personas.c.id == persona_id).values(**given))
        return _persona(row | given)

    @whole
    async def delete(self, persona_id: str) -> None:
        """Forgets it."""
        async with self._database.write() as db:
            await _row(db, persona_id)
            await db.execute(delete(personas).where(personas.c.id == persona_id))


async def _row(db: Any, persona_id: str) -> dict[str, Any]:
    if codec.is_id(persona_id):
        this = (personas.c.id == persona_id, personas.c.user_id == current().id)
        if (row := (await db.execute(select(personas).where(*this))).mappings().one_or_none()) is not None:
            return dict(row)
    raise NotFound("persona", persona_id)


def _name(name: str) -> str:
    short = codec.checked(name.strip(), param="name")
    if not 0 < len(short) <= 100:
        raise InvalidRequest("A persona's name has 1 to 100 characters.", param="name")
    return short


def _persona(row: Any) -> Persona:
    sampling = codec.sampling_from(row["sampling"])
    return Persona(row["id"], row["name"], row["system"], row["model"], sampling, row["created_at"])
