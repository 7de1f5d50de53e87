"""Preferences were never kept: a model's are in a file, a conversation's with it."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.drop_table("preferences")
