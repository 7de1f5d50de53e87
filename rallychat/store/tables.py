"""The tables, in portable SQLAlchemy. A change here needs a migration; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
    true,
)

from rallychat.identity import LOCAL_USER


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept as UTC. SQLite has no zones, so what comes back naive is UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: D102
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: D102
        if value is None:
            return None
        read: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return read


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _index(name: str, *columns: str, where: str) -> Index:
    """Of a person's conversations, by these columns and then by age; those alone that `where` says."""
    by = ("user_id", *columns, "updated_at", "id")
    there = text(where.replace("IS 1", "IS TRUE"))
    return Index(f"ix_conversations_{name}", *by, sqlite_where=text(where), postgresql_where=there)


conversations = Table(
    "conversations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(64), nullable=False, server_default=LOCAL_USER),
    Column("title", Text, nullable=False),
    Column("system", Text, nullable=False),
    Column("model", Text),
    Column("sampling", JSON, nullable=False),
    # No foreign key: the two tables would point at each other. `ConversationStore` alone writes it.
    Column("tip_id", String(40)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    # False: it only holds the answers of a chain of responses, and stands in no list.
    Column("listed", Boolean, nullable=False, server_default=true()),
    Column("strategy", String(100)),
    Column("budget", Integer),
    Column("elsewhere", Boolean),
    # The answer being made on the branch in view: one at a time, whichever process makes it.
    Column("answering", String(40)),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("archived", Boolean, nullable=False, server_default=false()),
    Column("folder", String(100)),
    # Raised when a message that others may have kept is changed: see `branches.py`.
    Column("revision", Integer, nullable=False, server_default="0"),
    # How its newest answer was asked for, where that was not as it is set: idle time prepares for the same.
    Column("asked", JSON(none_as_null=True)),
    # In the trash since; nothing but the library sees it there.
    Column("deleted_at", UtcDateTime),
    # What it was imported from, so that a second import brings nothing twice.
    Column("origin", String(200)),
    Index("ix_conversations_origin", "user_id", "origin"),
    Index("ix_conversations_deleted", "deleted_at"),
    Index("ix_conversations_recent", "user_id", "updated_at", "id"),
    # A list reads what it shows, however many conversations there are.
    _index("shelf", "archived", "pinned", "folder", where="deleted_at IS NULL"),
    _index("archive", where="archived IS 1"),
    _index("pinned", where="pinned IS 1"),
    _index("folder", "folder", where="folder IS NOT NULL"),
    _index("trash", where="deleted_at IS NOT NULL"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("conversation_id", String(40), ForeignKey("conversations.id"), nullable=False),
    # No ON DELETE CASCADE: SQLite follows it recursively and gives up at 1,000 levels, which a long
    # conversation has. One DELETE of all messages of a conversation satisfies the constraint as well.
    Column("parent_id", String(40), ForeignKey("messages.id")),
    Column("role", String(16), nullable=False),
    Column("model", Text),
    Column("status", String(16), nullable=False),
    Column("owner", String(40)),
    Column("finish_reason", String(16)),
    Column("error", Text),
    Column("usage", JSON(none_as_null=True)),
    Column("timings", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
    # The long ones last: SQLite reads a row up to the last column asked for.
    Column("parts", JSON, nullable=False),
    Column("span_key", Text),
    Column("span_ids", LargeBinary),
    Column("report", JSON(none_as_null=True)),
    Column("mark", String(8)),
    Column("span_quoted", Text),
    # When a person asked another process than its owner to end it.
    Column("stop_at", UtcDateTime),
    Column("error_code", Text),
    Index("ix_messages_conversation", "conversation_id", "id"),
    Index("ix_messages_parent", "parent_id"),
    Index("ix_messages_owner", "owner"),
)

memories = Table(
    "memories",
    metadata,
    Column(
        "conversation_id", String(40), ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("until", String(40), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("covers", JSON, nullable=False),
    Column("edited_by", String(8), nullable=False),
    Column("why", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

passages = Table(
    "passages",
    metadata,
    # The row of the full-text table: message ids are text, and SQLite's own row ids may change.
    Column("id", Integer, primary_key=True),
    Column("message_id", String(40), nullable=False),
    Index("ix_passages_message_id", "message_id", unique=True),
)

responses = Table(
    "responses",
    metadata,
    # One statement deletes all messages of a conversation; this follows it one level deep.
    Column("message_id", String(40), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("request", JSON, nullable=False),
    # Lengths of the deltas the answer was told in, so that its events have the same numbers ever after.
    Column("cuts", JSON(none_as_null=True)),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", String(64), primary_key=True, server_default=LOCAL_USER),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    # The process that answers; None once it has.
    Column("owner", String(40)),
    Column("response_id", String(40)),
    Column("status", Integer),
    Column("media_type", String(100)),
    Column("body", LargeBinary),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_idempotency_keys_age", "created_at"),
)

owners = Table(
    "owners",
    metadata,
    Column("id", String(40), primary_key=True),
    # Processes of one place see each other's locks; the others go by when this one was seen last.
    Column("place", String(255), nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("owner", String(40), nullable=False),
)

shares = Table(
    "shares",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(64), nullable=False, server_default=LOCAL_USER),
    Column("conversation_id", String(40), ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    # The branch that ends here is what the link shows: nothing said later.
    Column("tip_id", String(40), nullable=False),
    # How many characters its parts had: an answer that is continued says more than the link shows. None: not known.
    Column("length", Integer),
    # Kept as it is, so that the link can be copied again; whoever reads this table reads `messages`, too.
    Column("token", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_shares_token", "token", unique=True),
    Index("ix_shares_conversation", "conversation_id"),
)

personas = Table(
    "personas",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(64), nullable=False, server_default=LOCAL_USER),
    Column("name", Text, nullable=False),
    Column("system", Text, nullable=False),
    Column("model", Text),
    Column("sampling", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_personas_user", "user_id", "id"),
)
