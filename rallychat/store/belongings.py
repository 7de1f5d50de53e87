"""Everything of one user: which rows those are, all of it as a ZIP file, and nothing of it left.

Whatever table is added is found by its columns: it names a user, a conversation or a message, or a row of a table
that does. A test holds that every table is one of these, or is named here as nobody's.
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, LargeBinary, Select, Table, delete, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import Conflict, NotFound
from rallychat.store.account_tables import deeds, invites, users
from rallychat.store.batch_tables import files
from rallychat.store.database import Database
from rallychat.store.deeds import note
from rallychat.store.tables import conversations, messages, metadata, passages
from rallychat.store.whole import whole

NOBODYS: Final = frozenset({"deeds", "invites", "leases", "owners"})
"""Tables whose rows are the server's own."""
_APART: Final = frozenset({"conversations", "messages", "memories", "responses"})
_LEFT_OUT: Final = frozenset({"passages", "idempotency_keys"})
_HIDDEN: Final = frozenset({"hash", "password", "owner"})
_ERASED: Final = "user.erase"
"""What the audit log calls it: who was erased is nowhere else."""


def rows_of(table: Table, user_id: str) -> ColumnElement[bool] | None:
    """Which rows of a table belong to a user; None: it is nobody's."""
    if table.name in NOBODYS:
        return None
    if table is users:
        return users.c.id == user_id
    if "user_id" in table.c:
        return table.c.user_id == user_id
    theirs = select(conversations.c.id).where(conversations.c.user_id == user_id)
    if "conversation_id" in table.c:
        return table.c.conversation_id.in_(theirs)
    if "message_id" in table.c:
        return table.c.message_id.in_(select(messages.c.id).where(messages.c.conversation_id.in_(theirs)))
    for key in table.foreign_keys:
        above = None if key.column.table is table else rows_of(key.column.table, user_id)
        if above is not None:
            return key.parent.in_(select(key.column).where(above))
    return None


class Belongings:
    """Made by `ConversationStore`, whose promises hold here too.

    Args:
        folder: where the bytes of files are.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._exporting = asyncio.Lock()

    async def export(self, user_id: str, path: Path, *, keys: bool = True) -> None:
        """Writes everything of a user into a new ZIP file: conversations with all branches, the rest by table, as JSON.

        What each prompt was made of stands in files of its own, by message.

        Secrets (of keys, sessions, passwords) are not in it; they are nowhere. One is made at a time: it takes a
        connection for as long as it takes. `keys`: what there is to know of API keys is in it.
        """
        left_out = _APART | _LEFT_OUT | (frozenset() if keys else {"api_keys"})
        async with self._exporting:
            await self._export(user_id, path, left_out)

    @whole
    async def _export(self, user_id: str, path: Path, left_out: Set[str]) -> None:
        with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
            async with self._database.read() as db:
                mine = select(conversations.c.id).where(conversations.c.user_id == user_id)
                for conversation_id in await db.scalars(mine.order_by(conversations.c.id)):
                    whole_of_it = await _conversation(db, conversation_id)
                    # each names most messages: with them, a long conversation would be too large to be imported
                    found = {row["id"]: row.pop("report") for row in whole_of_it["messages"]}
                    reports = {message_id: report for message_id, report in found.items() if report}
                    name = f"{conversation_id}.json"
                    await asyncio.to_thread(_put, archive, f"conversations/{name}", whole_of_it)
                    if reports:
                        await asyncio.to_thread(_put, archive, f"reports/{name}", reports)
                for table in metadata.sorted_tables:
                    which = rows_of(table, user_id)
                    if which is not None and table.name not in left_out:
                        rows = await db.execute(_all(table).where(which))
                        held = [_plain(table, row) for row in rows.mappings()]
                        await asyncio.to_thread(_put, archive, f"{table.name}.json", held)
                file_ids = (await db.scalars(_files(user_id))).all()
            for file_id in file_ids:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    await asyncio.to_thread(archive.write, self._folder / file_id, f"files/{file_id}")
            about = {"version": 1, "user": user_id, "exported_at": datetime.now(UTC).isoformat()}
            _put(archive, "about.json", about)

    @whole
    async def erase(self, user_id: str) -> None:
        """Deletes a user with everything of theirs, for good; the audit log calls them by their id from now on.

        The bytes of files go when their rows are gone; what a crash between the two leaves is swept within minutes.

        Raises:
            NotFound: there is no such user. Conflict: others would be left without an admin.
        """
        async with self._database.write() as db:
            row = (await db.execute(select(users).where(users.c.id == user_id))).mappings().one_or_none()
            if row is None:
                raise NotFound("user", user_id)
            await _refuse_without_admin(db, user_id)
            left = await _delete_all(db, user_id)
            await db.execute(delete(invites).where(invites.c.created_by == user_id))
            of_them = (deeds.c.target == row["name"], deeds.c.action.startswith("user."))
            await db.execute(update(deeds).where(*of_them).values(target=user_id, detail={}))
            await db.execute(update(deeds).where(deeds.c.actor == user_id).values(actor_name=user_id))
            await note(db, _ERASED, user_id)
        await self._forget(left)

    @whole
    async def sweep(self) -> int:
        """Deletes what was stored for users after they were erased, by requests that were under way then.

        Returns:
            Of how many users there was something.
        """
        erased = select(deeds.c.target).where(deeds.c.action == _ERASED)
        owned = [table for table in metadata.sorted_tables if "user_id" in table.c]
        async with self._database.read() as db:
            found = union(*(select(table.c.user_id).where(table.c.user_id.in_(erased)) for table in owned))
            users_left = (await db.scalars(found)).all()
        for user_id in users_left:
            async with self._database.write() as db:
                left = await _delete_all(db, user_id)
            await self._forget(left)
        return len(users_left)

    async def _forget(self, file_ids: Sequence[str]) -> None:
        for file_id in file_ids:
            (self._folder / file_id).unlink(missing_ok=True)
        await self._database.scrub()


async def _delete_all(db: AsyncConnection, user_id: str) -> Sequence[str]:
    """Deletes every row of a user; returns the ids of the files whose bytes are to go."""
    left = (await db.scalars(_files(user_id))).all()
    # What looks after the full-text index needs `passages` while messages go.
    ordered = [table for table in reversed(metadata.sorted_tables) if table is not passages]
    for table in (*ordered, passages):
        which = rows_of(table, user_id)
        if which is not None:
            await db.execute(delete(table).where(which))
    return left


def _files(user_id: str) -> Select[Any]:
    return select(files.c.id).where(files.c.user_id == user_id).order_by(files.c.id)


async def _refuse_without_admin(db: AsyncConnection, user_id: str) -> None:
    admins = select(users.c.id).where(users.c.role == "admin", ~users.c.disabled).order_by(users.c.id)
    left = {*await db.scalars(admins.with_for_update())} - {user_id}  # two that erase each other meet here
    others = select(users.c.id).where(users.c.id != user_id).limit(1)
    if not left and (await db.scalars(others)).first() is not None:
        raise Conflict("This is the only admin.", hint="make somebody else an admin first")


async def _conversation(db: AsyncConnection, conversation_id: str) -> dict[str, Any]:
    """A conversation with every branch of it: each message names its parent."""
    held: dict[str, Any] = {}
    for table in metadata.sorted_tables:
        if table is conversations:
            which: ColumnElement[bool] = conversations.c.id == conversation_id
        elif table.name == "responses":
            here = select(messages.c.id).where(messages.c.conversation_id == conversation_id)
            which = table.c.message_id.in_(here)
        elif table.name in _APART:
            which = table.c.conversation_id == conversation_id
        else:
            continue
        rows = await db.execute(_all(table).where(which))
        held[str(table.name)] = [_plain(table, row) for row in rows.mappings()]
    (held["conversation"],) = held.pop("conversations")
    return held


def _all(table: Table) -> Select[Any]:
    return select(table).order_by(*table.primary_key.columns)


def _plain(table: Table, row: Mapping[Any, Any]) -> dict[str, Any]:
    """What of a row a person can read, or has said."""
    return {
        str(column.name): row[column.name]
        for column in table.c
        if column.name not in _HIDDEN and not isinstance(column.type, LargeBinary)
    }


def _put(archive: zipfile.ZipFile, name: str, held: object) -> None:
    archive.writestr(name, orjson.dumps(held, option=orjson.OPT_INDENT_2))
