"""Run by Alembic, inside the transaction that `rallychat.store.migrate` opened."""

from __future__ import annotations

from alembic import context

from rallychat.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
context.run_migrations()
