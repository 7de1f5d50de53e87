"""Brings a database to today's schema. Alembic is imported only when there is something to do."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect

from rallychat.errors import StoreError

HEAD = "0012"
"""The newest revision under migrations/versions; a test compares the two."""
FOLDER = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, name: str) -> None:
    """Runs the migrations that the database `name` lacks on an open transaction: all of them, or none.

    Raises:
        StoreError: it is no database of ours, or was made by a later version.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    tables = inspect(connection).get_table_names()
    if tables and "alembic_version" not in tables:
        raise StoreError(f"{name} holds something other than RallyChat's conversations.", hint="move it away")
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        raise StoreError(
            f"{name} was made by a later version of RallyChat.",
            hint="it was left as it is; update RallyChat",
        ) from exc
