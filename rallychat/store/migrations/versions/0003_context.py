"""How a conversation's context is kept: strategy, budget, pins and exclusions, memories, quotes in the token log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("conversations", sa.Column("strategy", sa.String(100)))
    op.add_column("conversations", sa.Column("budget", sa.Integer))
    op.add_column("messages", sa.Column("mark", sa.String(8)))
    op.add_column("messages", sa.Column("span_quoted", sa.Text))
    op.create_table(
        "memories",
        sa.Column("conversation_id", sa.String(40), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("until", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("covers", sa.JSON, nullable=False),
        sa.Column("edited_by", sa.String(8), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "version", name="pk_memories"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_memories_conversation_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "passages",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("message_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_passages"),
    )
    op.create_index("ix_passages_message_id", "passages", ["message_id"], unique=True)
