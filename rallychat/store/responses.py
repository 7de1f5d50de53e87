"""Responses: answers with what was asked of them. Each is a message of a conversation and a row beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import NotFound
from rallychat.identity import current
from rallychat.messages import Message
from rallychat.store import codec, queries
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.items import entitle, insert_chain, is_followed, new_row, take_out
from rallychat.store.owners import Owner
from rallychat.store.tables import conversations, messages, responses
from rallychat.store.types import Conversation, StoredMessage, StoredResponse, message_of
from rallychat.store.whole import again, to_the_end, whole
from rallychat.unset import UNSET, Unset

_GIVEN_UP = "This answer was given up before it began."


class ResponseStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database = database
        self._owner = owner

    async def begin(
        self,
        conversation_id: str | None,
        *,
        said: Sequence[Message],
        model: str,
        request: Mapping[str, Any],
        title: str = "",
        parent_id: str | Unset = UNSET,
        key: str | None = None,
    ) -> tuple[StoredResponse, Conversation]:
        """Stores what was said and, below it, a running, empty answer; returns that and the conversation it is in.

        Args:
            conversation_id: where; None makes a conversation that stands in no list.
            title: of a conversation that has none, where its view moves.
            parent_id: the message it follows, as a branch that leaves a listed conversation's view alone; if
                not given the end of the branch in view, which moves.
            key: the idempotency key that leads to this response from now on.

        Raises:
            NotFound: no such conversation or parent. Conflict: what it would follow is still being written.
        """
        model = codec.checked(model, param="model")
        begun = again(lambda: self._begin(conversation_id, said, model, request, title, parent_id, key))
        return await to_the_end(begun, abandoned=lambda made: self._abandon(made[0].answer.id))

    async def _begin(
        self,
        conversation_id: str | None,
        said: Sequence[Message],
        model: str,
        request: Mapping[str, Any],
        title: str,
        parent_id: str | Unset,
        key: str | None,
    ) -> tuple[StoredResponse, Conversation]:
        now = datetime.now(UTC)
        for name in ("instructions", "user", "safety_identifier", "prompt_cache_key"):
            codec.checked(request.get(name) or "", param=name)
        codec.metadata_json(request["metadata"] or {})
        async with self._database.write() as db:
            if conversation_id is None:
                conversation_id = await _unlisted(db, now)
            conversation = await queries.conversation_row(db, conversation_id)
            parent = conversation["tip_id"] if parent_id is UNSET else parent_id
            if parent is not None:
                await queries.check_parent(db, parent, conversation_id)
            if parent_id is UNSET:
                await queries.refuse_answering(db, conversation)
            rows = await insert_chain(db, conversation_id, parent, said)
            answer = new_row(conversation_id, parent_id=rows[-1]["id"], after=rows[-1]["id"])
            answer |= {"role": "assistant", "parts": [], "model": model, "status": "running"}
            await db.execute(insert(messages).values(**answer | {"owner": self._owner.id}))
            noted = {**request, "input": [row["id"] for row in rows]}
            await db.execute(insert(responses).values(message_id=answer["id"], request=noted))
            if parent_id is UNSET:
                await entitle(db, conversation, title)
            if parent_id is UNSET or not conversation["listed"]:  # a chain is seen from its newest answer
                in_view = parent_id is UNSET
                await queries.set_tip(db, conversation_id, answer["id"], at=now, answering=in_view)
            await queries.lead(db, key, answer["id"])
        response = StoredResponse(codec.message_from(answer), noted, None)
        return response, codec.conversation_from(conversation)

    async def _abandon(self, message_id: str) -> None:
        async with self._database.write() as db:
            await queries.interrupt(db, messages.c.id == message_id, error=_GIVEN_UP)

    @whole
    async def get(self, response: str) -> StoredResponse:
        """One response, with its answer as it is stored now.

        Raises:
            NotFound: there is none.
        """
        async with self._database.read() as db:
            message, row = await _rows(db, response)
        cuts = None if row["cuts"] is None else tuple(row["cuts"])
        return StoredResponse(codec.message_from(message), row["request"], cuts)

    @whole
    async def note(self, response: StoredResponse, **facts: Any) -> StoredResponse:
        """Keeps more of what its response object tells.

        Raises:
            NotFound: it was deleted meanwhile.
        """
        noted = {**response.request, **facts}
        this = responses.c.message_id == response.answer.id
        async with self._database.write() as db:
            await _rows(db, response.id)
            await db.execute(update(responses).where(this).values(request=noted))
        return replace(response, request=noted)

    @whole
    async def inputs(self, response: StoredResponse) -> list[StoredMessage]:
        """The messages its request brought, as far as they are still there."""
        ids = response.request["input"]
        async with self._database.read() as db:
            these = select(messages).where(messages.c.id.in_(ids), queries.of_mine())
            found = await db.execute(these.order_by(messages.c.id))
            return [codec.message_from(dict(row)) for row in found.mappings()]

    @whole
    async def delete(self, response: str, *, undo: bool = False) -> None:
        """Forgets a response that has ended.

        In a listed conversation its messages stay, unless `undo` is given. Where it was in none they go with
        it as far as no other response follows them, and the last one takes all that is left.

        Raises:
            NotFound: there is none. Conflict: it is still being written.
        """
        async with self._database.write() as db:
            message, row = await _rows(db, response)
            queries.refuse_running(message)
            conversation = await queries.conversation_row(db, message["conversation_id"])
            await db.execute(delete(responses).where(responses.c.message_id == message["id"]))
            if conversation["listed"] and not undo:
                return
            for message_id in (message["id"], *reversed(row["request"]["input"])):
                if not await is_followed(db, message_id):
                    await take_out(db, await queries.message_row(db, message_id))
            if not conversation["listed"] and not await _has_responses(db, conversation["id"]):
                here = messages.c.conversation_id == conversation["id"]
                await db.execute(delete(messages).where(here))
                await db.execute(delete(conversations).where(conversations.c.id == conversation["id"]))


async def _unlisted(db: AsyncConnection, now: datetime) -> str:
    row = {"id": new_id("conv"), "user_id": current().id, "title": "", "system": "", "sampling": {}}
    await db.execute(insert(conversations).values(**row, listed=False, created_at=now, updated_at=now))
    return row["id"]  # type: ignore[return-value]


async def _rows(db: AsyncConnection, response: str) -> tuple[dict[str, Any], dict[str, Any]]:
    this = message_of(response)
    if response.startswith("resp_") and codec.is_id(this):
        said = select(messages).where(messages.c.id == this, queries.of_mine())
        message = (await db.execute(said)).mappings().one_or_none()
        found = await db.execute(select(responses).where(responses.c.message_id == this))
        row = found.mappings().one_or_none()
        if message is not None and row is not None:
            return dict(message), dict(row)
    raise NotFound("response", response)


async def _has_responses(db: AsyncConnection, conversation_id: str) -> bool:
    joined = responses.join(messages, responses.c.message_id == messages.c.id)
    counted = select(func.count()).select_from(joined).where(messages.c.conversation_id == conversation_id)
    return bool((await db.scalars(counted)).one())
