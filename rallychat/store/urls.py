"""Which database, by URL; and how one is named without its password."""

from __future__ import annotations

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from rallychat.errors import SettingsError
from rallychat.settings import Settings

_KNOWN = ("postgresql", "postgres", "postgresql+asyncpg")


def postgres_url(settings: Settings) -> URL | None:
    """The URL of a PostgreSQL database; None: the file of the data folder.

    Raises:
        SettingsError: it is no URL, or of a database we do not know.
    """
    if settings.database_url is None:
        return None
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError) as exc:
        raise SettingsError(
            "The database URL cannot be read.", hint="postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from exc
    if url.drivername not in _KNOWN:
        raise SettingsError(
            f"The database URL begins with '{url.drivername}://', which is not supported.",
            hint="postgresql://USER:PASSWORD@HOST:PORT/DATABASE; without a URL it is SQLite in the data folder",
        )
    if not url.database:
        raise SettingsError(
            "The database URL names no database.", hint="postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        )
    return url


def shown(url: URL) -> str:
    """What logs and people see of it: never the password, nor anything else of the query."""
    host = url.host or str(url.query.get("host", "localhost"))
    port = f":{url.port}" if url.port else ""
    user = f"{url.username}@" if url.username else ""
    return f"postgresql://{user}{host}{port}/{url.database}"
