"""Conversations, their messages as a tree, and preferences."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False, server_default="local"),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("system", sa.Text, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("tip_id", sa.String(40)),
        sa.Column("created_at", time, nullable=False),
        sa.Column("updated_at", time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
    )
    op.create_index("ix_conversations_recent", "conversations", ["user_id", "updated_at", "id"])
    op.create_table(
        "messages",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("conversation_id", sa.String(40), nullable=False),
        sa.Column("parent_id", sa.String(40)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(40)),
        sa.Column("finish_reason", sa.String(16)),
        sa.Column("error", sa.Text),
        sa.Column("usage", sa.JSON),
        sa.Column("timings", sa.JSON),
        sa.Column("created_at", time, nullable=False),
        sa.Column("parts", sa.JSON, nullable=False),
        sa.Column("span_key", sa.Text),
        sa.Column("span_ids", sa.LargeBinary),
        sa.Column("report", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_messages_conversation_id"
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["messages.id"], name="fk_messages_parent_id"),
    )
    op.create_index("ix_messages_conversation", "messages", ["conversation_id", "id"])
    op.create_index("ix_messages_parent", "messages", ["parent_id"])
    op.create_index("ix_messages_owner", "messages", ["owner"])
    op.create_table(
        "preferences",
        sa.Column("user_id", sa.String(64), nullable=False, server_default="local"),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "name", name="pk_preferences"),
    )
