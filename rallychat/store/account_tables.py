"""Tables of people: users, sessions, invitations, API keys, and what was done to them. Secrets are kept as hashes."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, String, Table, Text

from rallychat.store.tables import UtcDateTime, metadata

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("email", String(320)),
    Column("role", String(16), nullable=False),
    # None: comes in through a provider, or not at all.
    Column("password", Text),
    Column("disabled", Boolean, nullable=False),
    Column("issuer", String(255)),
    Column("subject", String(255)),
    Column("limits", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime),
    Index("ix_users_name", "name", unique=True),
    Index("ix_users_issuer_subject", "issuer", "subject", unique=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", String(40), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("device", String(200), nullable=False),
    Column("address", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index("ix_sessions_hash", "hash", unique=True),
    Index("ix_sessions_user_id", "user_id"),
)

invites = Table(
    "invites",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("note", String(200), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index("ix_invites_hash", "hash", unique=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    # No foreign key: the one local person has no row.
    Column("user_id", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Index("ix_api_keys_hash", "hash", unique=True),
    Index("ix_api_keys_user_id", "user_id"),
)

deeds = Table(
    "deeds",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    # Who did it, by id and as they were called then.
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(100), nullable=False),
    Column("action", String(40), nullable=False),
    Column("target", String(100), nullable=False),
    Column("detail", JSON, nullable=False),
)
