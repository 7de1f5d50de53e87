"""Brings a database to today's schema. Alembic is imported only when there is something to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, inspect
from sqlalchemy.pool import NullPool

from rallychat.errors import StoreError
from rallychat.store import search
from rallychat.store.database import configure, translated

HEAD = "0003"
"""The newest revision under migrations/versions; a test compares the two."""
FOLDER = Path(__file__).parent / "migrations"


def migrate(path: Path, *, busy_timeout: float) -> None:
    """Runs the migrations that `path` lacks, all of them or none. Blocking; the caller keeps others out.

    Raises:
        StoreError: the file is no database of ours, was made by a later version, or cannot be written.
    """
    with translated(path):
        if _revision(path, busy_timeout) == HEAD:
            return
        engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
        # Altering a table means rebuilding it, and dropping the old one breaks the rows that point to it.
        configure(engine, busy_timeout=busy_timeout, foreign_keys=False)
        with engine.connect() as connection, connection.begin():
            upgrade(connection, path)


def upgrade(connection: Connection, path: Path) -> None:
    """Runs migrations on an open transaction."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    tables = inspect(connection).get_table_names()
    if tables and "alembic_version" not in tables:
        raise StoreError(f"{path} holds something other than RallyChat's conversations.", hint="move it away")
    try:
        command.upgrade(config, HEAD)
    except CommandError as exc:
        raise StoreError(
            f"{path} was made by a later version of RallyChat.",
            hint="it was left as it is; update RallyChat",
        ) from exc
    if search.available():
        for statement in (*search.SCHEMA, *search.FILL):
            connection.exec_driver_sql(statement)
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise StoreError(f"{path} could not be updated: a row of '{broken[0]}' points nowhere.")


def _revision(path: Path, busy_timeout: float) -> str | None:
    """The schema's revision, or None where there is none. Plain sqlite3: this is on every start's path."""
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        # Changes nothing, and fails where the file cannot be written: better now than in the middle of a turn.
        connection.execute("BEGIN")
        connection.execute("UPDATE alembic_version SET version_num = version_num")
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            return None
        raise
    finally:
        connection.close()
    return None if row is None else str(row[0])
