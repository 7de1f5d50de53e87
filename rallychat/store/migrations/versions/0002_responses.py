"""Responses, what clients noted on conversations, and idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("conversations", sa.Column("metadata", sa.JSON))
    op.add_column("conversations", sa.Column("listed", sa.Boolean, nullable=False, server_default=sa.true()))
    op.create_table(
        "responses",
        sa.Column("message_id", sa.String(40), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("cuts", sa.JSON),
        sa.PrimaryKeyConstraint("message_id", name="pk_responses"),
        sa.ForeignKeyConstraint(
            ["message_id"], ["messages.id"], name="fk_responses_message_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.String(64), nullable=False, server_default="local"),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(40)),
        sa.Column("response_id", sa.String(40)),
        sa.Column("status", sa.Integer),
        sa.Column("media_type", sa.String(100)),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_age", "idempotency_keys", ["created_at"])
