"""Which database the settings name."""

from __future__ import annotations

from rallychat.settings import Settings
from rallychat.store.database import Database
from rallychat.store.postgres import PostgresDatabase
from rallychat.store.sqlite import SqliteDatabase
from rallychat.store.urls import postgres_url


def database_of(settings: Settings, *, busy_timeout: float) -> Database:
    """The database, not yet opened. `busy_timeout`: seconds to wait for another's lock on a SQLite file.

    Raises:
        SettingsError: the URL is wrong, or what it needs is not installed.
    """
    if (url := postgres_url(settings)) is not None:
        return PostgresDatabase(url, connections=settings.database_connections)
    return SqliteDatabase(settings.database.absolute(), busy_timeout=busy_timeout)
