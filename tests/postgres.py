"""A real PostgreSQL for the tests: a database for each worker, emptied between tests; `.ci/postgres` starts one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

_TABLES = """SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables
             WHERE schemaname = 'public' AND tablename <> 'alembic_version'"""


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    """A new database of that name on a server; gone afterwards."""
    _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def empty(url: str) -> None:
    """Takes every row out, and leaves the schema."""
    _run(_empty(url))


async def _empty(url: str) -> None:
    connection = await connect(url)
    try:
        if (tables := await connection.fetchval(_TABLES)) is not None:
            await connection.execute(f"TRUNCATE {tables} CASCADE")
    finally:
        await connection.close()


def _execute(url: str, *statements: str) -> None:
    async def execute() -> None:
        connection = await connect(url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    _run(execute())


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(work)


async def connect(url: str) -> Any:
    """A connection to look, or meddle, with."""
    import asyncpg

    given: URL = make_url(url)
    host = str(given.query.get("host") or given.host)
    return await asyncpg.connect(
        host=host, user=given.username, database=given.database, port=given.port or 5432
    )


async def lapsed() -> None:
    """As long after the death of a process elsewhere as it takes for it to count as dead."""
    if "RALLYCHAT_TEST_DATABASE_URL" in os.environ:
        looking = await connect(os.environ["RALLYCHAT_DATABASE_URL"])
        await looking.execute("UPDATE owners SET seen_at = seen_at - interval '1 hour'")
        await looking.close()


class Cable:
    """What leads to a server, and can be cut: those who use it find the server gone."""

    def __init__(self, server: str, folder: Path) -> None:
        self._to = Path(str(make_url(server).query["host"]), ".s.PGSQL.5432")
        self._here = folder / ".s.PGSQL.5432"
        self._open: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self.url = make_url(server).set(query={"host": str(folder)}).render_as_string(hide_password=False)

    async def mend(self) -> None:
        """The server can be reached."""
        self._here.parent.mkdir(exist_ok=True)
        self._listening = await asyncio.start_unix_server(self._connected, self._here)

    async def cut(self) -> None:
        """It cannot, and connections are lost."""
        if self._listening is not None:
            self._listening.close()
            self._here.unlink(missing_ok=True)
            for writer in [*self._open]:
                writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._to)
        self._open |= {writer, far_writer}
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        self._open.discard(writer)
        writer.close()


@asynccontextmanager
async def cable(server: str, folder: Path) -> AsyncIterator[Cable]:
    """A cable to `server`, whole at first."""
    made = Cable(server, folder)
    await made.mend()
    try:
        yield made
    finally:
        await made.cut()
