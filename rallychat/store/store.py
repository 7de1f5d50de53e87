"""Conversations and their messages. Knows tables and transactions; never sees engines, prompts or HTTP.

The messages of a conversation form a tree: each names its parent, nothing is ever overwritten by an edit or a
second answer, and the conversation's tip names the end of the branch in view. See docs/storage.md.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update

from rallychat.catalog.types import Sampling
from rallychat.errors import Conflict, InvalidRequest, NotFound
from rallychat.messages import ContextReport, FinishReason, Message, Part, Timings, Usage
from rallychat.settings import Settings
from rallychat.store import codec, queries
from rallychat.store.branches import Branches
from rallychat.store.contexts import ContextStore
from rallychat.store.database import Database, create_file
from rallychat.store.idempotency import KeyStore
from rallychat.store.ids import new_id
from rallychat.store.items import ItemStore
from rallychat.store.journal import Journal, deltas, forget
from rallychat.store.migrate import migrate
from rallychat.store.owners import Owner, starting
from rallychat.store.responses import ResponseStore
from rallychat.store.tables import LOCAL_USER, conversations, messages, preferences
from rallychat.store.types import Conversation, StoredMessage, TokenSpan
from rallychat.store.whole import to_the_end, whole
from rallychat.unset import UNSET, Unset

_INTERRUPTED = "The server stopped before this answer was finished."
_START_TIMEOUT = 60.0
_NO_COLUMNS: dict[str, Any] = dict.fromkeys(messages.c.keys())


class ConversationStore:
    """Every conversation of one data folder. Safe to share between tasks; each method is one transaction.

    Every method may raise StoreError (disk full, file damaged, locked by another program); nothing is half
    written then. An unknown id is NotFound; a person's text that cannot be stored is InvalidRequest, a
    model's is mended.
    """

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database = database
        self._owner = owner
        self.journal = Journal(owner.journal(owner.id))
        self._branches = Branches()
        self.contexts = ContextStore(database)
        self.items = ItemStore(database)
        self.responses = ResponseStore(database, owner)
        self.keys = KeyStore(database, owner)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, *, busy_timeout: float = 5.0
    ) -> AsyncGenerator[ConversationStore]:
        """Opens, and on first use creates, the database of `settings.data_dir`; brings it to today's schema.

        Answers that a process which is gone left running are marked interrupted, with all that was saved of
        them. Several processes may have one folder open. `busy_timeout`: seconds to wait for another's lock.

        Raises:
            StoreError: the file is damaged, read-only, locked, or of a later version; it is left as it is.
        """
        path = settings.database.absolute()
        owner = Owner(path.parent / "run")
        database = Database(path, busy_timeout=busy_timeout)
        try:
            await to_the_end(asyncio.to_thread(_claim, owner, path, busy_timeout))
            store = cls(database, owner)
            await store.interrupt_orphans()
            yield store
            store.journal.close()
        finally:
            await database.aclose()
            owner.release()

    @whole
    async def interrupt_orphans(self) -> int:
        """Marks running answers of dead processes as interrupted, as `open` does; returns how many."""
        async with self._database.read() as db:
            owners = await queries.owners_of_running(db)
        gone = await asyncio.to_thread(_gone, self._owner, owners)
        if not gone:
            return 0
        journals = [self._owner.journal(owner) for owner in gone]
        newest = await asyncio.to_thread(lambda: [deltas(path) for path in journals])
        async with self._database.write() as db:
            for owner, texts in zip(gone, newest, strict=True):
                for message_id, told in texts.items():
                    await queries.restore(db, message_id, owner=owner, told=told)
            await queries.drop_claims(db, gone)
            interrupted = await queries.interrupt(db, messages.c.owner.in_(gone), error=_INTERRUPTED)
        await asyncio.to_thread(forget, journals)
        return interrupted

    @whole
    async def create(
        self,
        *,
        title: str = "",
        system: str = "",
        model: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        metadata: Mapping[str, str] | None = None,
    ) -> Conversation:
        """A new, empty conversation."""
        now = datetime.now(UTC)
        row: dict[str, Any] = {"id": new_id("conv"), "tip_id": None, "created_at": now, "updated_at": now}
        row |= {"listed": True}
        row |= codec.settled(title=title, system=system, model=model, sampling=sampling, metadata=metadata)
        async with self._database.write() as db:
            await db.execute(insert(conversations).values(**row, user_id=LOCAL_USER))
        return codec.conversation_from(row)

    @whole
    async def get(self, conversation_id: str) -> Conversation:
        """One conversation."""
        async with self._database.read() as db:
            return codec.conversation_from(await queries.conversation_row(db, conversation_id))

    @whole
    async def update(
        self,
        conversation_id: str,
        *,
        title: str | Unset = UNSET,
        system: str | Unset = UNSET,
        model: str | Unset | None = UNSET,
        sampling: Sampling | Unset = UNSET,
        metadata: Mapping[str, str] | Unset | None = UNSET,
        strategy: str | Unset | None = UNSET,
        budget: int | Unset | None = UNSET,
    ) -> Conversation:
        """Changes what is given. Messages are not touched."""
        given = codec.settled(
            title=title,
            system=system,
            model=model,
            sampling=sampling,
            metadata=metadata,
            strategy=strategy,
            budget=budget,
        )
        this = conversations.c.id == conversation_id
        async with self._database.write() as db:
            row = await queries.conversation_row(db, conversation_id)
            if given:
                await db.execute(update(conversations).where(this).values(**given))
        return codec.conversation_from(row | given)

    @whole
    async def delete(self, conversation_id: str) -> None:
        """Deletes a conversation and the messages of every branch. Later saves of its answers are ignored."""
        async with self._database.write() as db:
            await queries.conversation_row(db, conversation_id)
            await db.execute(delete(messages).where(messages.c.conversation_id == conversation_id))
            await db.execute(delete(conversations).where(conversations.c.id == conversation_id))

    @whole
    async def message(self, message_id: str) -> StoredMessage:
        """One message, with its report."""
        async with self._database.read() as db:
            return codec.message_from(await queries.message_row(db, message_id))

    @whole
    async def path(self, conversation_id: str, *, tip: str | None = None) -> builtins.list[StoredMessage]:
        """The branch that ends at `tip` (the conversation's own tip if not given), oldest first.

        Only the last message carries its report. An empty conversation has an empty path.
        """
        async with self._database.read() as db:
            row = await queries.conversation_row(db, conversation_id)
            end: str | None = row["tip_id"] if tip is None else tip
            if end is None:
                return []
            if not codec.is_id(end):
                raise NotFound("message", end)
            branch = await self._branches.read(db, conversation_id, end)
        if not branch:
            raise NotFound("message", end)
        return branch

    @whole
    async def siblings(self, message_id: str) -> builtins.list[str]:
        """The ids of all children of the same parent in the same role, oldest first, itself among them."""
        async with self._database.read() as db:
            row = await queries.message_row(db, message_id)
            return [*await db.scalars(queries.siblings_query(row))]

    @whole
    async def select(self, conversation_id: str, message_id: str) -> str:
        """Brings the branch through `message_id` into view; returns the new tip, the newest leaf below it."""
        async with self._database.write() as db:
            await queries.conversation_row(db, conversation_id)
            await queries.message_row(db, message_id, conversation_id=conversation_id)
            tip: str = (await db.scalars(queries.newest_leaf_query(message_id))).one()
            await queries.set_tip(db, conversation_id, tip)
        return tip

    async def begin(
        self, conversation_id: str, *, parent_id: str | None, user: Message | None, model: str
    ) -> tuple[StoredMessage | None, StoredMessage]:
        """Stores a person's message (if given) under `parent_id` and a running, empty answer under that.

        One transaction, on the disk when this returns; the answer becomes the tip. Cancelled meanwhile, the
        question is stored or not, and the answer is not left running.

        Raises:
            NotFound: no such conversation, or no such parent in it.
            Conflict: the parent is itself still being written.
        """
        begun = self._begin(conversation_id, parent_id, user, codec.checked(model, param="model"))
        return await to_the_end(begun, abandoned=lambda pair: self._abandon(pair[1].id))

    async def _begin(
        self, conversation_id: str, parent_id: str | None, user: Message | None, model: str
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
            await queries.conversation_row(db, conversation_id)
            if parent_id is not None:
                parent = await queries.message_row(db, parent_id, conversation_id=conversation_id)
                queries.refuse_running(parent)
            newest = (await db.scalars(queries.newest_query(conversation_id))).one()
            if asked:
                asked |= {"id": new_id("msg", after=newest), "parent_id": parent_id}
                newest = parent_id = asked["id"]
                await db.execute(insert(messages).values(**asked))
            answer |= {"id": new_id("msg", after=newest), "parent_id": parent_id}
            await db.execute(insert(messages).values(**answer))
            await queries.set_tip(db, conversation_id, answer["id"], at=now)
        return codec.message_from(asked) if asked else None, codec.message_from(answer)

    async def resume(self, message_id: str) -> StoredMessage:
        """Sets an ended answer running again, to be continued where it stopped; it becomes the tip.

        Raises:
            Conflict: it is still being written, is no answer, or other messages already follow it.
        """
        if (await self.message(message_id)).status == "running":
            await self.interrupt_orphans()  # perhaps its process has died since `open`
        return await to_the_end(self._resume(message_id), abandoned=lambda row: self._abandon(row.id))

    async def _resume(self, message_id: str) -> StoredMessage:
        running = {"status": "running", "finish_reason": None, "error": None}
        this, children = messages.c.id == message_id, messages.c.parent_id == message_id
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id)
            queries.refuse_running(row)
            if row["role"] != "assistant":
                raise Conflict(f"Message '{message_id}' is not an answer, so it cannot be continued.")
            if (await db.scalars(select(messages.c.id).where(children).limit(1))).first() is not None:
                raise Conflict(f"Message '{message_id}' is followed by others.", hint="regenerate it instead")
            await db.execute(update(messages).where(this).values(**running, owner=self._owner.id))
            await queries.set_tip(db, row["conversation_id"], message_id, at=datetime.now(UTC))
        return codec.message_from(row | running)

    async def _abandon(self, message_id: str) -> None:
        """Ends a running answer that nobody will write."""
        async with self._database.write() as db:
            this = messages.c.id == message_id
            await queries.interrupt(db, this, error="This answer was given up before it began.")

    @whole
    async def save(self, partials: Sequence[tuple[str, tuple[Part, ...], TokenSpan | None]]) -> None:
        """Stores growing answers, (id, all parts so far, span so far) each, in one transaction.

        The span is replaced as given: one left from before the text grew would lack its end. An answer that
        has ended or was deleted meanwhile is left alone. A power cut may take the last saves back; a crash of
        this process does not.
        """
        if not partials:
            return
        async with self._database.write("growing") as db:
            for message_id, parts, span in partials:
                mine = (messages.c.id == message_id) & (messages.c.owner == self._owner.id)
                grown = {"parts": codec.parts_mended(parts), **codec.span_columns(span)}
                await db.execute(update(messages).where(mine).values(**grown))

    @whole
    async def finish(
        self,
        message_id: str,
        *,
        parts: tuple[Part, ...],
        reason: FinishReason,
        error: str | None = None,
        usage: Usage | None,
        timings: Timings | None,
        report: ContextReport | None = None,
        span: TokenSpan | None = None,
        cuts: Sequence[int] = (),
    ) -> StoredMessage:
        """Ends a running answer with all that is known of it. One transaction, on the disk when this returns.

        `cuts`: the lengths of the deltas it was told in.

        One that was taken for interrupted meanwhile is ended all the same: the text is what counts.

        Raises:
            NotFound: it was deleted meanwhile.
            Conflict: it has ended already.
        """
        ended: dict[str, Any] = {
            "status": "complete",
            "finish_reason": reason,
            "error": None if error is None else codec.mended(error),
            "parts": codec.parts_mended(parts),
            "usage": codec.figures_json(usage),
            "timings": codec.figures_json(timings),
            "report": codec.report_json(report),
            **codec.span_columns(span),
        }
        async with self._database.write() as db:
            row = await queries.message_row(db, message_id)
            if row["status"] != "running" and row["finish_reason"] != "interrupted":
                raise Conflict(f"Message '{message_id}' has ended already.")
            await db.execute(update(messages).where(messages.c.id == message_id).values(**ended, owner=None))
            await queries.set_cuts(db, message_id, cuts)
            active = conversations.c.id == row["conversation_id"]
            await db.execute(update(conversations).where(active).values(updated_at=datetime.now(UTC)))
        return codec.message_from(row | ended)

    @whole
    async def save_spans(self, spans: Mapping[str, TokenSpan]) -> None:
        """Stores what each message (by id) added to the token log; unknown ids are ignored."""
        if not spans:
            return
        async with self._database.write("growing") as db:
            for message_id, span in spans.items():
                this = messages.c.id == message_id
                await db.execute(update(messages).where(this).values(**codec.span_columns(span)))

    @whole
    async def get_preference(self, name: str) -> str | None:
        """What was last set under `name`, or None."""
        this = queries.is_preference(codec.checked(name, param="name"))
        async with self._database.read() as db:
            return (await db.scalars(select(preferences.c.value).where(this))).one_or_none()

    @whole
    async def set_preference(self, name: str, value: str | None) -> None:
        """Keeps `value` under `name`; None forgets it."""
        this = queries.is_preference(codec.checked(name, param="name"))
        async with self._database.write() as db:
            await db.execute(delete(preferences).where(this))
            if value is not None:
                row = {"user_id": LOCAL_USER, "name": name, "value": codec.checked(value, param="value")}
                await db.execute(insert(preferences).values(**row))

    @whole
    async def list(self, *, limit: int = 50, before: str | None = None) -> builtins.list[Conversation]:
        """At most `limit` conversations, the last active first; `before` (an id) goes on after that one.

        Raises:
            NotFound: there is no conversation `before`.
            InvalidRequest: `limit` is below 1.
        """
        if limit < 1:
            raise InvalidRequest("limit must be at least 1.", param="limit")
        async with self._database.read() as db:
            after = None if before is None else await queries.conversation_row(db, before)
            rows = await db.execute(queries.recent_query(after=after).limit(limit))
            return [codec.conversation_from(row) for row in rows.mappings()]


def _claim(owner: Owner, path: Path, busy_timeout: float) -> None:
    with starting(owner.folder, timeout=_START_TIMEOUT):
        create_file(path)
        migrate(path, busy_timeout=busy_timeout)
        owner.take()


def _gone(owner: Owner, others: Sequence[str]) -> builtins.list[str]:
    with starting(owner.folder, timeout=_START_TIMEOUT):
        gone = [other for other in others if not owner.is_live(other)]
        owner.sweep(keep=gone)
    return gone
