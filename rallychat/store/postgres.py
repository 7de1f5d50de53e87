"""PostgreSQL, through asyncpg: for several server processes on one database. The place that knows its SQL and errors.

What a crash of the database can lose: no *durable* commit. Commits of growing answers do not wait for its disk.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rallychat.errors import InvalidRequest, RallyChatError, SettingsError, StoreError, StoreUnavailable
from rallychat.identity import current
from rallychat.store import migrate, search_postgres
from rallychat.store.bells import PATIENCE, Bells
from rallychat.store.codec import from_json, to_json
from rallychat.store.database import Database, Write
from rallychat.store.urls import shown
from rallychat.store.whole import Again

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
POOL_TIMEOUT = 10.0
RECONNECT = 1.0
_CHANNEL = "rallychat"
_MIGRATING = 0x52414C4C59
"""Key of the advisory lock that a process holds while it brings the schema to today's."""

_GONE = ("08", "57P", "53300", "25006")
"""Beginnings of the codes that say: not now. A lost connection, a stop or start, too many clients, a standby."""
_AGAIN = ("40001", "40P01", "0A000")
"""Serialization failure, deadlock, and a plan that a migration of another process has made stale."""
_NUL = ("22021", "22P05")
"""Only here: to SQLite it is a character like any other."""
_SENTENCES = {
    "28": ("{name} refuses this user or password.", "check RALLYCHAT_DATABASE_URL"),
    "3D000": ("There is no database {name}.", "create it: createdb -E UTF8 NAME"),
    "42501": ("The user of {name} may not do this there.", "make it the owner of the database"),
    "53100": ("There is no room left on the disk of {name}.", "free some space"),
    "54": ("A message is too long to be stored in {name}.", "shorten it"),
}


def wrong(exc: BaseException, name: str) -> RallyChatError:
    """What a person needs to know of what the driver raised."""
    cause = exc.orig if isinstance(exc, StatementError) and exc.orig is not None else exc
    if isinstance(cause, RallyChatError):  # a value refused while the statement was bound
        return cause
    code = getattr(cause, "sqlstate", None) or ""
    if code in _NUL:
        return InvalidRequest("A text or id holds a NUL character.", hint="remove it")
    if code.startswith(_AGAIN):
        return Again(f"{name} was busy with the same rows.")
    lost = isinstance(exc, DBAPIError) and exc.connection_invalidated
    if lost or code.startswith(_GONE) or isinstance(cause, OSError | TimeoutError | PoolExhausted):
        said = "has no connection free" if isinstance(cause, PoolExhausted) else "cannot be reached"
        return StoreUnavailable(f"{name} {said}.", hint="try again in a moment")
    for kind, (sentence, hint) in _SENTENCES.items():
        if code.startswith(kind):
            return StoreError(sentence.format(name=name), hint=hint)
    return StoreError(f"{name} failed: {cause}.")


@contextmanager
def translated(name: str) -> Generator[None]:
    """Turns what the driver raises into a StoreError of one sentence."""
    try:
        yield
    except (SQLAlchemyError, OSError) as exc:
        raise wrong(exc, name) from exc
    except Exception as exc:
        if type(exc).__module__.startswith("asyncpg"):
            raise wrong(exc, name) from exc
        raise


class PostgresDatabase(Database):
    """Transactions on one database of a PostgreSQL server.

    SQLite has one writer at a time, and the store relies on it. Here the writers of one person take turns: within
    this process by a lock of ours, among processes by an advisory lock that the transaction holds.
    """

    is_shared = True

    def __init__(self, url: URL, *, connections: int) -> None:
        self.name = shown(url)
        try:
            import asyncpg  # noqa: F401
        except ImportError as exc:
            raise SettingsError(
                "PostgreSQL needs the library asyncpg, which is not installed.",
                hint="./rally add postgres, or pip install 'rallychat[postgres]'",
            ) from exc
        self._url, self._connect = _arguments(url)
        self._engine = create_async_engine(
            self._url,
            connect_args=self._connect,
            json_serializer=to_json,
            json_deserializer=from_json,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT,
            pool_pre_ping=True,  # the server may have been restarted since
        )
        self._readers: AsyncEngine = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._bells = Bells()
        self._listening: asyncio.Task[None] | None = None

    async def prepare(self) -> None:  # noqa: D102
        with translated(self.name):
            async with self._engine.begin() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
                await connection.run_sync(self._upgrade)
        self.searchable = True
        self._listening = asyncio.create_task(self._listen(), name="listen to PostgreSQL")

    def _upgrade(self, connection: Connection) -> None:
        if connection.exec_driver_sql("SHOW server_encoding").scalar_one() != "UTF8":
            raise StoreError(f"{self.name} is not encoded as UTF-8.", hint="create it: createdb -E UTF8 NAME")
        there = "SELECT to_regclass('alembic_version')"
        version = None
        if connection.exec_driver_sql(there).scalar_one() is not None:
            version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if version == migrate.HEAD:
            return
        migrate.upgrade(connection, self.name)
        for statement in search_postgres.SCHEMA:
            connection.exec_driver_sql(statement)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:  # noqa: D102
        with translated(self.name):
            async with self._readers.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, kind: Write = "durable") -> AsyncGenerator[AsyncConnection]:  # noqa: D102
        who = current().id
        turn = self._turns.setdefault(who, asyncio.Lock())
        async with turn:
            with translated(self.name):
                async with self._engine.begin() as connection:
                    lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:who, 0))")
                    await connection.execute(lock, {"who": f"rallychat:{who}"})
                    if kind == "growing":
                        await connection.execute(text("SET LOCAL synchronous_commit = off"))
                    yield connection

    async def search(  # noqa: D102
        self,
        db: AsyncConnection,
        asked: list[str],
        *,
        conversation_id: str | None,
        limit: int,
        every: bool = False,
    ) -> list[tuple[str, float]]:
        return await search_postgres.find(
            db, asked, conversation_id=conversation_id, limit=limit, every=every
        )

    async def tell(self, db: AsyncConnection, topic: str) -> None:  # noqa: D102
        await db.execute(text("SELECT pg_notify(:channel, :topic)"), {"channel": _CHANNEL, "topic": topic})

    async def wait(self, topic: str) -> None:  # noqa: D102
        await self._bells.wait(topic)

    async def scrub(self) -> None:
        """Frees the room of deleted rows, to be written over; PostgreSQL's log and backups keep what they hold."""
        try:
            with translated(self.name):
                async with self._engine.connect() as connection:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    await connection.exec_driver_sql("VACUUM")
        except StoreError as exc:
            log.warning("the room of what was deleted is not free yet: %s", exc)

    async def size(self) -> int:  # noqa: D102
        async with self.read() as db:
            return int((await db.scalars(text("SELECT pg_database_size(current_database())"))).one())

    async def aclose(self) -> None:  # noqa: D102
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
        await self._engine.dispose()

    async def _listen(self) -> None:
        """Rings the bells for what other processes tell, over a connection of its own that is made anew."""
        deaf = False
        while True:
            try:
                async with self._engine.connect() as connection:
                    raw = (await connection.get_raw_connection()).driver_connection
                    assert raw is not None
                    ended = asyncio.Event()
                    raw.add_termination_listener(lambda *_, ended=ended: ended.set())
                    await raw.add_listener(_CHANNEL, self._heard)
                    self._bells.ring_all()  # whatever was told meanwhile
                    if deaf:
                        log.info("%s: other processes are heard again", self.name)
                    deaf = False
                    try:
                        await ended.wait()
                    finally:
                        await connection.invalidate()  # it listens: nobody else may get it
            except Exception as exc:
                level = logging.DEBUG if deaf else logging.WARNING
                said = "%s: other processes are not heard, what they do is seen up to %g s late: %s"
                log.log(level, said, self.name, PATIENCE, exc)
                deaf = True
            await asyncio.sleep(RECONNECT)

    def _heard(self, _connection: object, _process: int, _channel: str, topic: str) -> None:
        self._bells.ring(topic)


def _arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """The URL as asyncpg takes it; libpq's `sslmode` is understood."""
    query = dict(url.query)
    arguments: dict[str, Any] = {"timeout": CONNECT_TIMEOUT, "command_timeout": 60}
    mode = query.pop("sslmode", None)
    if mode is not None:
        if mode not in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"):
            raise SettingsError(f"The database URL has an unknown sslmode '{mode}'.")
        arguments["ssl"] = mode
    if root := query.pop("sslrootcert", None):
        context = ssl.create_default_context(cafile=str(root))
        context.check_hostname = mode == "verify-full"
        arguments["ssl"] = context
    known = {"host", "port", "prepared_statement_cache_size"}
    if unknown := sorted(set(query) - known):
        raise SettingsError(
            f"The database URL has an unknown parameter '{unknown[0]}'.",
            hint=f"known are sslmode, sslrootcert, {', '.join(sorted(known))}",
        )
    return url.set(drivername="postgresql+asyncpg", query=query), arguments
