"""What tells a branch that was kept in memory from one that has changed, and how the newest answer was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("conversations", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("conversations", sa.Column("asked", sa.JSON))
