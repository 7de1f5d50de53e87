"""Conversations and their messages. Knows tables and transactions; never sees engines, prompts or HTTP.

The messages of a conversation form a tree: each names its parent, nothing is ever overwritten by an edit or a
second answer, and the conversation's tip names the end of the branch in view. See docs/storage.md.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.catalog.types import Sampling
from rallychat.errors import InvalidRequest, NotFound
from rallychat.identity import current
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.store import codec, queries
from rallychat.store.answers import AnswerStore
from rallychat.store.backup import BackupStore
from rallychat.store.batches import BatchStore
from rallychat.store.belongings import Belongings
from rallychat.store.branches import Branches
from rallychat.store.contexts import ContextStore, memory_of
from rallychat.store.credentials import CredentialStore
from rallychat.store.database import Database
from rallychat.store.deeds import DeedStore
from rallychat.store.files import FileStore
from rallychat.store.growing import GrowingStore
from rallychat.store.idempotency import KeyStore
from rallychat.store.ids import new_id
from rallychat.store.items import ItemStore, chain
from rallychat.store.journal import Journal
from rallychat.store.leases import LeaseStore
from rallychat.store.library import Library
from rallychat.store.opening import database_of
from rallychat.store.owners import Owner
from rallychat.store.people import PeopleStore
from rallychat.store.processes import Processes
from rallychat.store.responses import ResponseStore
from rallychat.store.shares import PersonaStore, ShareStore
from rallychat.store.tables import conversations, messages
from rallychat.store.types import Conversation, Memory, StoredMessage, TokenSpan
from rallychat.store.whole import whole
from rallychat.unset import UNSET, Unset


class ConversationStore:
    """Every conversation of one data folder. Safe to share between tasks; each method is one transaction.

    What a method is asked for by a name is that of `identity.current()`; somebody else's is NotFound, as an
    unknown id is. Every method may raise StoreError (disk full, file damaged, locked by another program);
    nothing is half written then. A person's text that cannot be stored is InvalidRequest, a model's is mended.
    """

    def __init__(self, database: Database, owner: Owner, processes: Processes, folder: Path) -> None:
        self._database = database
        self._owner = owner
        self._processes = processes
        self.journal = Journal(owner.journal(owner.id))
        self._branches = Branches()
        self.contexts = ContextStore(database)
        self.items = ItemStore(database)
        self.library = Library(database)
        self.shares = ShareStore(database)
        self.personas = PersonaStore(database)
        self.responses = ResponseStore(database, owner)
        self.keys = KeyStore(database, owner)
        self.people = PeopleStore(database)
        self.credentials = CredentialStore(database)
        self.deeds = DeedStore(database)
        self.backups = BackupStore(database, folder)
        self.answers = AnswerStore(database, owner, processes)
        self.growing = GrowingStore(database, owner)
        self.leases = LeaseStore(database, owner, processes)
        self.files = FileStore(database, owner.folder.parent / "files")
        self.belongings = Belongings(database, self.files.folder)
        self.batches = BatchStore(database, owner, processes)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, *, busy_timeout: float = 5.0
    ) -> AsyncGenerator[ConversationStore]:
        """Opens, and on first use creates, the database of `settings`; brings it to today's schema.

        Answers that a process which is gone left running are marked interrupted, with all that was saved of
        them. Several processes may have it open. `busy_timeout`: seconds to wait for another's lock (SQLite).

        Raises:
            StoreError: the database is damaged, read-only, locked, or of a later version; it is left as it is.
            SettingsError: its URL is wrong.
        """
        owner = Owner(settings.data_dir.absolute() / "run")
        database = database_of(settings, busy_timeout=busy_timeout)
        processes = Processes(database, owner)
        try:
            async with processes.joined():
                store = cls(database, owner, processes, settings.data_dir.absolute())
                yield store
                store.journal.close()
        finally:
            await database.aclose()

    @property
    def place(self) -> str:
        """The database, as a person may read it: a path, or a URL without its password."""
        return self._database.name

    async def size(self) -> int:
        """Bytes of the database on its disk."""
        return await self._database.size()

    async def interrupt_orphans(self) -> int:
        """Marks running answers of dead processes as interrupted, as `open` does; returns how many."""
        return await self._processes.interrupt_orphans()

    @whole
    async def create(
        self,
        *,
        title: str = "",
        system: str = "",
        model: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        metadata: Mapping[str, str] | None = None,
        said: Sequence[Message] = (),
    ) -> Conversation:
        """A new conversation, which begins with what was `said`."""
        now, name = datetime.now(UTC), new_id("conv")
        below = chain(name, None, said, after=None)
        row: dict[str, Any] = {"id": name, "created_at": now, "updated_at": now, "listed": True}
        row |= {"tip_id": below[-1]["id"] if below else None}
        row |= codec.settled(title=title, system=system, model=model, sampling=sampling, metadata=metadata)
        async with self._database.write() as db:
            await db.execute(insert(conversations).values(**row, user_id=current().id))
            if below:
                await db.execute(insert(messages), below)
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
        elsewhere: bool | Unset | None = UNSET,
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
            elsewhere=elsewhere,
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
            return await self._path(db, await queries.conversation_row(db, conversation_id), tip)

    @whole
    async def view(
        self, conversation_id: str, *, tip: str | None = None
    ) -> tuple[builtins.list[StoredMessage], Memory | None]:
        """The branch, as `path` gives it, and the memory in force on it; one look at both."""
        async with self._database.read() as db:
            branch = await self._path(db, await queries.conversation_row(db, conversation_id), tip)
            return branch, await memory_of(db, conversation_id, branch)

    async def _path(
        self, db: AsyncConnection, row: dict[str, Any], tip: str | None
    ) -> builtins.list[StoredMessage]:
        end: str | None = row["tip_id"] if tip is None else tip
        if end is None:
            return []
        branch = await self._branches.read(db, row, end) if codec.is_id(end) else []
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

    @whole
    async def save_spans(self, spans: Mapping[str, TokenSpan]) -> None:
        """Stores what each message (by id) added to the token log; unknown ids are ignored."""
        if not spans:
            return
        async with self._database.write("growing") as db:
            for message_id, span in spans.items():
                this = (messages.c.id == message_id) & queries.of_mine()
                await db.execute(update(messages).where(this).values(**codec.span_columns(span)))
            await queries.changed(db, queries.with_settled([*spans]))

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
