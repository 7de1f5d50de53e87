"""Whether a conversation quotes the person's others; indexes, so that a list reads what it shows and no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("conversations", sa.Column("elsewhere", sa.Boolean))
    for name, columns, where in (
        ("shelf", ["archived", "pinned", "folder"], "deleted_at IS NULL"),
        ("archive", [], "archived IS 1"),
        ("pinned", [], "pinned IS 1"),
        ("folder", ["folder"], "folder IS NOT NULL"),
        ("trash", [], "deleted_at IS NOT NULL"),
    ):
        op.create_index(
            f"ix_conversations_{name}",
            "conversations",
            ["user_id", *columns, "updated_at", "id"],
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where.replace("IS 1", "IS TRUE")),
        )
