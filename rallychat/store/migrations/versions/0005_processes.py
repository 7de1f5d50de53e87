"""Several processes: which of them live, what each has taken, which answers they were asked to stop."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "owners",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("place", sa.String(255), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.add_column("messages", sa.Column("stop_at", sa.DateTime(timezone=True)))
    op.add_column("conversations", sa.Column("answering", sa.String(40)))
