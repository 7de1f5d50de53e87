"""The statements `store.py` is made of. Each runs on a connection that the caller opened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.errors import Conflict, NotFound
from rallychat.identity import current
from rallychat.store.codec import is_id, parts_mended
from rallychat.store.journal import Told, whole
from rallychat.store.tables import (
    conversations,
    idempotency_keys,
    messages,
    responses,
)
from rallychat.store.types import response_id

_CONVERSATION = select(conversations).where(
    conversations.c.id == bindparam("asked"),
    conversations.c.user_id == bindparam("person"),
    conversations.c.deleted_at.is_(None),
)
"""Built once, as all that each turn of a conversation asks for."""
_WITHOUT_REPORT = [column for column in messages.c if column is not messages.c.report]


def mine() -> ColumnElement[bool]:
    """Conversations of the person of this request: every statement that a name from outside leads to has it."""
    return conversations.c.user_id == current().id


def of_mine(*, trash: bool = False) -> ColumnElement[bool]:
    """The same of messages; those of the trash only with `trash`."""
    whose = exists().where(conversations.c.id == messages.c.conversation_id, mine())
    return whose if trash else and_(whose, not_in_trash())


def not_in_trash() -> ColumnElement[bool]:
    """Messages, whosever, of conversations that are there and not in the trash."""
    return exists().where(
        conversations.c.id == messages.c.conversation_id, conversations.c.deleted_at.is_(None)
    )


async def conversation_row(db: AsyncConnection, conversation_id: str) -> dict[str, Any]:
    """The row, or NotFound, also where it is somebody else's or in the trash."""
    if is_id(conversation_id):
        found = await db.execute(_CONVERSATION, {"asked": conversation_id, "person": current().id})
        if (row := found.mappings().one_or_none()) is not None:
            return dict(row)
    raise NotFound("conversation", conversation_id)


async def message_row(
    db: AsyncConnection, message_id: str, *, conversation_id: str | None = None, trash: bool = False
) -> dict[str, Any]:
    """The row, or NotFound; also where it is somebody else's, or not of `conversation_id` if that is given.

    `trash`: one of the trash is found, too.
    """
    if is_id(message_id):
        found = await db.execute(select(messages).where(messages.c.id == message_id, of_mine(trash=trash)))
        row = found.mappings().one_or_none()
        if row is not None and conversation_id in (None, row["conversation_id"]):
            return dict(row)
    raise NotFound("message", message_id)


async def check_parent(db: AsyncConnection, message_id: str, conversation_id: str) -> None:
    """NotFound if there is no such message in this conversation, Conflict if it is still being written."""
    row = None
    if is_id(message_id):
        here = and_(messages.c.id == message_id, messages.c.conversation_id == conversation_id)
        found = await db.execute(select(messages.c.id, messages.c.status).where(here))
        row = found.mappings().one_or_none()
    if row is None:
        raise NotFound("message", message_id)
    refuse_running(dict(row))


def refuse_running(row: dict[str, Any]) -> None:
    """Conflict if the message is still being written."""
    if row["status"] == "running":
        raise Conflict(f"Message '{row['id']}' is still being written.", hint="stop it or wait for its end")


async def refuse_answering(db: AsyncConnection, conversation: dict[str, Any]) -> None:
    """Conflict if an answer is being made on the branch in view, in whichever process."""
    if (answer := conversation["answering"]) is not None:
        status = await db.scalars(select(messages.c.status).where(messages.c.id == answer))
        if status.one_or_none() == "running":
            raise Conflict("This conversation is still answering.", hint="stop it or wait for its end")


async def answered(db: AsyncConnection, which: ColumnElement[bool]) -> None:
    """Those conversations are free again."""
    await db.execute(update(conversations).where(which).values(answering=None))


async def set_tip(
    db: AsyncConnection,
    conversation_id: str,
    tip: str,
    *,
    at: datetime | None = None,
    answering: bool = False,
) -> None:
    """Makes `tip` the end of the branch in view; `at` also moves the conversation up the list.

    `answering`: it is an answer that is being made from now on.
    """
    moved: dict[str, Any] = {} if at is None else {"updated_at": at}
    moved |= {"answering": tip} if answering else {}
    this = conversations.c.id == conversation_id
    await db.execute(update(conversations).where(this).values(tip_id=tip, **moved))


async def changed(db: AsyncConnection, which: ColumnElement[bool]) -> None:
    """Call where a message that is complete is changed, or moved, in those conversations: see `branches.py`."""
    raised = conversations.c.revision + 1
    await db.execute(update(conversations).where(which).values(revision=raised))


def with_settled(message_ids: Sequence[str]) -> ColumnElement[bool]:
    """This person's conversations in which one of these messages has a complete one below it."""
    below = messages.alias("below")
    settled = select(below.c.conversation_id).where(
        below.c.parent_id.in_(message_ids), below.c.status == "complete"
    )
    return and_(conversations.c.id.in_(settled), mine())


def path_query(
    conversation_id: str | ColumnElement[str],
    tip: str | ColumnElement[str],
    columns: Sequence[Any],
    *,
    most: ColumnElement[int] | None = None,
) -> Select[Any]:
    """These columns of the messages from the root to `tip`, or of the `most` newest of them. One query."""
    parent = messages.alias("parent")
    start = and_(messages.c.id == tip, messages.c.conversation_id == conversation_id)
    first = select(messages.c.id, messages.c.parent_id, literal(1).label("depth")).where(start)
    walk = first.cte("walk", recursive=True)
    above = parent.c.id == walk.c.parent_id
    step = select(parent.c.id, parent.c.parent_id, walk.c.depth + 1).join(walk, above)
    walk = walk.union_all(step if most is None else step.where(walk.c.depth < most))
    # A child's id is greater than its parent's.
    return select(*columns).join(walk, messages.c.id == walk.c.id).order_by(messages.c.id)


@cache
def branch_query(*, whole: bool) -> Select[Any]:
    """The messages, with the report of the last alone, from the root to `tip` in `chat`; else the `most` newest."""
    chat, tip, most = (
        bindparam("chat", type_=String),
        bindparam("tip", type_=String),
        bindparam("most", type_=Integer),
    )
    report = case((messages.c.id == tip, messages.c.report), else_=null()).label("report")
    return path_query(chat, tip, [*_WITHOUT_REPORT, report], most=None if whole else most)


def newest_leaf_query(message_id: str) -> Select[Any]:
    """The newest leaf at or below a message: a child's id is greater than its parent's, so the greatest."""
    below = select(messages.c.id).where(messages.c.id == message_id).cte("below", recursive=True)
    below = below.union_all(select(messages.c.id).join(below, messages.c.parent_id == below.c.id))
    return select(func.max(below.c.id))


def siblings_query(row: dict[str, Any]) -> Select[Any]:
    """The ids that stand where `row` stands in the tree, in its role, oldest first."""
    parent: str | None = row["parent_id"]
    same_parent = messages.c.parent_id.is_(None) if parent is None else messages.c.parent_id == parent
    same_place = and_(messages.c.conversation_id == row["conversation_id"], same_parent)
    return select(messages.c.id).where(same_place, messages.c.role == row["role"]).order_by(messages.c.id)


def newest_query(conversation_id: str) -> Select[Any]:
    """The greatest message id of a conversation, or None."""
    return select(func.max(messages.c.id)).where(messages.c.conversation_id == conversation_id)


def recent_query(*, after: dict[str, Any] | None, trash: bool = False) -> Select[Any]:
    """Conversations, the last active first; those after the row `after`, if given."""
    id_, time = conversations.c.id, conversations.c.updated_at
    deleted = conversations.c.deleted_at
    wanted = select(conversations).where(mine(), conversations.c.listed)
    wanted = wanted.where(deleted.is_not(None) if trash else deleted.is_(None))
    if after is not None:
        at = after["updated_at"]  # said twice: of an OR no index makes a range
        wanted = wanted.where(time <= at, or_(time < at, and_(time == at, id_ < after["id"])))
    return wanted.order_by(time.desc(), id_.desc())


async def owners_of_running(db: AsyncConnection) -> list[str]:
    """The processes that answers or requests wait for."""
    columns = (messages.c.owner, idempotency_keys.c.owner)
    found = await db.scalars(union(*(select(owner).where(owner.is_not(None)) for owner in columns)))
    return [name for name in found if name is not None]


async def restore(db: AsyncConnection, message_id: str, *, owner: str, told: Sequence[Told]) -> None:
    """Gives a running answer what its dead process's journal holds."""
    mine = (messages.c.id == message_id, messages.c.owner == owner, messages.c.status == "running")
    done = await db.execute(update(messages).where(*mine).values(parts=parts_mended(whole(told))))
    if done.rowcount:
        await set_cuts(db, message_id, [len(text) for _, text in told])


async def set_cuts(db: AsyncConnection, message_id: str, cuts: Sequence[int]) -> None:
    """Notes how an answer was told, if it is a response."""
    this = responses.c.message_id == message_id
    await db.execute(update(responses).where(this).values(cuts=[*cuts]))


async def lead(db: AsyncConnection, key: str | None, answer: str) -> None:
    """An idempotency key, if one is given, leads to this answer from now on."""
    if key is not None:
        this = (idempotency_keys.c.user_id == current().id, idempotency_keys.c.key == key)
        leads = {"response_id": response_id(answer), "owner": None}
        await db.execute(update(idempotency_keys).where(*this).values(**leads))


async def drop_claims(db: AsyncConnection, owners: Sequence[str]) -> None:
    """Frees the idempotency keys of requests whose process is gone and that began no answer."""
    claimed = idempotency_keys.c.owner.in_(owners)
    await db.execute(delete(idempotency_keys).where(claimed, idempotency_keys.c.response_id.is_(None)))
    await db.execute(update(idempotency_keys).where(claimed).values(owner=None))


async def interrupt(db: AsyncConnection, which: ColumnElement[bool], *, error: str) -> int:
    """Ends those running answers, keeping all that was saved of them; returns how many."""
    running = and_(which, messages.c.status == "running")
    await answered(db, conversations.c.answering.in_(select(messages.c.id).where(running)))
    ended = {
        "status": "complete",
        "finish_reason": "interrupted",
        "error": error,
        "owner": None,
        "stop_at": None,
    }
    return (await db.execute(update(messages).where(running).values(**ended))).rowcount
