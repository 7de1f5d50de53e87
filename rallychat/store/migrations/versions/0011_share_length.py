"""How long the last message was when its link was made: an answer may be continued since."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("shares", sa.Column("length", sa.Integer))
    shares = sa.table("shares", sa.column("id"), sa.column("tip_id"), sa.column("length"))
    messages = sa.table("messages", sa.column("id"), sa.column("parts", sa.JSON))
    db = op.get_bind()
    tips = sa.select(shares.c.id, messages.c.parts).join(messages, messages.c.id == shares.c.tip_id)
    for share, parts in db.execute(tips).all():
        length = sum(len(part["text"]) for part in parts)
        db.execute(sa.update(shares).where(shares.c.id == share).values(length=length))
