"""Pinned, archived, filed and deleted conversations, links that share one, personas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    no = sa.false()
    op.add_column("conversations", sa.Column("pinned", sa.Boolean, nullable=False, server_default=no))
    op.add_column("conversations", sa.Column("archived", sa.Boolean, nullable=False, server_default=no))
    op.add_column("conversations", sa.Column("folder", sa.String(100)))
    op.add_column("conversations", sa.Column("deleted_at", sa.DateTime(timezone=True)))
    op.add_column("conversations", sa.Column("origin", sa.String(200)))
    op.create_index("ix_conversations_origin", "conversations", ["user_id", "origin"])
    op.create_index("ix_conversations_deleted", "conversations", ["deleted_at"])
    op.create_table(
        "shares",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False, server_default="local"),
        sa.Column("conversation_id", sa.String(40), nullable=False),
        sa.Column("tip_id", sa.String(40), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shares"),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name="fk_shares_conversation_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_shares_token", "shares", ["token"], unique=True)
    op.create_index("ix_shares_conversation", "shares", ["conversation_id"])
    op.create_table(
        "personas",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False, server_default="local"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("system", sa.Text, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_personas"),
    )
    op.create_index("ix_personas_user", "personas", ["user_id", "id"])
