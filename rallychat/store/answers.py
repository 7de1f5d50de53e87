"""The life of an answer: begun under a question, saved as it grows, ended, and perhaps continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import insert, select, update

from rallychat.errors import Conflict
from rallychat.messages import ContextReport, FinishReason, Message, Part, Timings, Usage
from rallychat.store import codec, queries
from rallychat.store.database import Database
from rallychat.store.ids import new_id
from rallychat.store.items import entitle
from rallychat.store.owners import Owner
from rallychat.store.processes import Processes
from rallychat.store.tables import conversations, messages
from rallychat.store.types import Ending, StoredMessage, TokenSpan
from rallychat.store.whole import again, to_the_end, whole

_NO_COLUMNS: dict[str, Any] = dict.fromkeys(messages.c.keys())


class AnswerStore:
    """Made by `ConversationStore`, whose promises hold here too: each method is one transaction."""

    def __init__(self, database: Database, owner: Owner, processes: Processes) -> None:
        self._database = database
        self._owner = owner
        self._processes = processes

    async def begin(
        self,
        conversation_id: str,
        *,
        parent_id: str | None,
        user: Message | None,
        model: str,
        title: str = "",
        alone: bool = False,
        key: str | None = None,
    ) -> tuple[StoredMessage | None, StoredMessage]:
        """Stores a person's message (if given) under `parent_id` and a running, empty answer under that.

        One transaction, on the disk when this returns; the answer becomes the tip. Cancelled meanwhile, the
        question is stored or not, and the answer is not left running.

        Args:
            title: the conversation's, if it has none.
            key: the idempotency key that leads to this answer from now on.

        Raises:
            NotFound: no such conversation, or no such parent in it.
            Conflict: the parent is itself still being written; or, if it is to be made `alone`, any other
                answer begun so in this conversation, in whichever process.
        """
        model = codec.checked(model, param="model")
        begun = again(lambda: self._begin(conversation_id, parent_id, user, model, title, key, alone=alone))
        return await to_the_end(begun, abandoned=lambda pair: self._abandon(pair[1].id))

    async def _begin(
        self,
        conversation_id: str,
        parent_id: str | None,
        user: Message | None,
        model: str,
        title: str,
        key: str | None,
        *,
        alone: bool,
    ) -> tuple[StoredMessage | None, StoredMessage]:
        now = datetime.now(UTC)
        common = _NO_COLUMNS | {"conversation_id": conversation_id, "created_at": now}
        answer = common | {"role": "assistant", "model": model, "parts": []}
        answer |= {"status": "running", "owner": self._owner.id}
        asked: dict[str, Any] = {}
        if user is not None:
            asked = common | {
                "role": user.role,
                "parts": codec.parts_checked(user.parts),
                "status": "complete",
            }
        async with self._database.write() as db:
            row = await queries.conversation_row(db, conversation_id)
            if alone:
                await queries.refuse_answering(db, row)
            if parent_id is not None:
                await queries.check_parent(db, parent_id, conversation_id)
            newest = (await db.scalars(queries.newest_query(conversation_id))).one()
            if asked:
                asked |= {"id": new_id("msg", after=newest), "parent_id": parent_id}
                newest = parent_id = asked["id"]
            answer |= {"id": new_id("msg", after=newest), "parent_id": parent_id}
            await db.execute(insert(messages), [asked, answer] if asked else [answer])
            await queries.set_tip(db, conversation_id, answer["id"], at=now, answering=alone)
            await entitle(db, row, title)
            await queries.lead(db, key, answer["id"])
        return codec.message_from(asked) if asked else None, codec.message_from(answer)

    async def resume(self, message_id: str, *, alone: bool = False, key: str | None = None) -> StoredMessage:
        """Sets an ended answer running again, to be continued where it stopped; it becomes the tip.

        Args:
            key: as for `begin`.

        Raises:
            Conflict: it is still being written, is no answer, or other messages already follow it; if it is
                to be made `alone`, as for `begin`.
        """
        if await self._is_running(message_id):
            await self._processes.interrupt_orphans()  # perhaps its process has died since `open`
        return await to_the_end(
            again(lambda: self._resume(message_id, key, alone=alone)),
            abandoned=lambda row: self._abandon(row.id),
        )

    @whole
    async def _is_running(self, message_id: str) -> bool:
        async with self._database.read() as db:
            return bool((await queries.message_row(db, message_id))["status"] == "running")

    async def _resume(self, message_id: str, key: str | None, *, alone: bool) -> StoredMessage:
        running = {"status": "running", "stop_at": None}
        running |= dict.fromkeys(("finish_reason", "error", "error_code"))
        this, children = messages.c.id == message_id, messages.c.parent_id == message_id
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id)
            queries.refuse_running(row)
            if row["role"] != "assistant":
                raise Conflict(f"Message '{message_id}' is not an answer, so it cannot be continued.")
            if (await db.scalars(select(messages.c.id).where(children).limit(1))).first() is not None:
                raise Conflict(f"Message '{message_id}' is followed by others.", hint="regenerate it instead")
            if alone:
                await queries.refuse_answering(db, await queries.conversation_row(db, row["conversation_id"]))
            await db.execute(update(messages).where(this).values(**running, owner=self._owner.id))
            now = datetime.now(UTC)
            await queries.set_tip(db, row["conversation_id"], message_id, at=now, answering=alone)
            await queries.changed(db, conversations.c.id == row["conversation_id"])
            await queries.lead(db, key, message_id)
        return codec.message_from(row | running)

    async def _abandon(self, message_id: str) -> None:
        """Ends a running answer that nobody will write."""
        async with self._database.write() as db:
            this = messages.c.id == message_id
            await queries.interrupt(db, this, error="This answer was given up before it began.")

    @whole
    async def save(
        self,
        partials: Sequence[tuple[str, tuple[Part, ...], TokenSpan | None]],
        *,
        cuts: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        """Stores growing answers, (id, all parts so far, span so far) each, in one transaction.

        The span is replaced as given: one left from before the text grew would lack its end. An answer that
        has ended or was deleted meanwhile is left alone. A power cut may take the last saves back; a crash of
        this process does not. `cuts`: the lengths of the deltas each was told in, by its id.
        """
        if not partials:
            return
        async with self._database.write("growing") as db:
            for message_id, parts, span in partials:
                mine = (messages.c.id == message_id) & (messages.c.owner == self._owner.id)
                grown = {"parts": codec.parts_mended(parts), **codec.span_columns(span)}
                done = await db.execute(update(messages).where(mine).values(**grown))
                if done.rowcount and message_id in cuts:
                    await queries.set_cuts(db, message_id, cuts[message_id])
                await self._database.tell(db, message_id)

    @whole
    async def finish(
        self,
        message_id: str,
        *,
        parts: tuple[Part, ...],
        reason: FinishReason,
        error: str | None = None,
        error_code: str | None = None,
        usage: Usage | None,
        timings: Timings | None,
        report: ContextReport | None = None,
        span: TokenSpan | None = None,
        cuts: Sequence[int] = (),
    ) -> StoredMessage:
        """Ends a running answer with all that is known of it. One transaction, on the disk when this returns.

        `cuts`: the lengths of the deltas it was told in.

        One that was taken for interrupted meanwhile, or is in the trash by now, is ended all the same: the text is
        what counts, and who restores it finds nothing that grows for ever.

        Raises:
            NotFound: it was deleted meanwhile.
            Conflict: it has ended already.
        """
        ended: dict[str, Any] = {
            "status": "complete",
            "error_code": error_code,
            "parts": codec.parts_mended(parts),
            **codec.ending_columns(Ending(reason, error, usage, timings)),
            "report": codec.report_json(report),
            **codec.span_columns(span),
        }
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id, trash=True)
            elsewhere = row["status"] == "running" and row["owner"] != self._owner.id
            if elsewhere or (row["status"] != "running" and row["finish_reason"] != "interrupted"):
                raise Conflict(f"Message '{message_id}' has ended already.")
            ended |= {"owner": None, "stop_at": None}
            await db.execute(update(messages).where(messages.c.id == message_id).values(**ended))
            await queries.set_cuts(db, message_id, cuts)
            await self._database.tell(db, message_id)
            active = conversations.c.id == row["conversation_id"]
            await db.execute(update(conversations).where(active).values(updated_at=datetime.now(UTC)))
            await queries.answered(db, conversations.c.answering == message_id)
            if row["status"] != "running":
                await queries.changed(db, active)
        return codec.message_from(row | ended)
