"""PostgreSQL: its schema, what it says when it cannot be used, and what happens while it is away."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from rallychat.errors import SettingsError, StoreError, StoreUnavailable
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.store import ConversationStore, migrate, processes
from rallychat.store.tables import metadata
from tests import postgres
from tests.api_world import echoing
from tests.test_store_migrations import FIRST, OPTIONS, exchange, next_release

T = TypeVar("T")
pytestmark = pytest.mark.postgres


@pytest.fixture
def url(worker_id: str) -> Iterator[str]:
    """A database without a schema."""
    with postgres.database(os.environ["RALLYCHAT_TEST_DATABASE_URL"], f"rallychat_{worker_id}_bare") as made:
        yield made


@pytest.fixture
def where(tmp_path: Path, url: str) -> Settings:
    return at(tmp_path, url)


def at(folder: Path, url: str) -> Settings:
    return Settings(data_dir=folder, database_url=SecretStr(url))


async def look(url: str, seen: Callable[[Connection], T]) -> T:
    """What `seen` finds, given a connection."""
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(seen)
    finally:
        await engine.dispose()


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts=OPTIONS)
    assert context.get_current_revision() == migrate.HEAD
    return list(compare_metadata(context, metadata))


async def test_migrations_lead_to_todays_tables(where: Settings, url: str) -> None:
    async with ConversationStore.open(where):
        pass
    assert await look(url, differences) == []


def first_schema(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.FOLDER))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")
    rows = FIRST[FIRST.index("INSERT INTO conversations") :].replace(
        "x'0100000002000000'", "'\\x0100000002000000'"
    )
    for statement in rows.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


async def test_a_database_of_the_first_schema_is_read_by_todays_code(where: Settings, url: str) -> None:
    await look(url, first_schema)
    async with ConversationStore.open(where) as store:
        [conversation] = await store.list()
        assert (conversation.title, conversation.sampling.seed) == ("Fish", 1)
        asked, answer = await store.path(conversation.id)
        assert (asked.text, answer.text, answer.message.reasoning) == ("Do they sleep?", "Yes.", "hm")
        assert answer.span is not None
        assert answer.span.ids == (1, 2)
        assert [found for found, _ in await store.contexts.search("sleeping")] == ["msg_1"]
        await store.answers.begin(
            "conv_1", parent_id="msg_2", user=Message.of("user", "Where?"), model="echo"
        )
        assert len(await store.path("conv_1")) == 4
    assert await look(url, differences) == []


@pytest.mark.parametrize("then", ["1 / 0", "op.execute('DELETE FROM messages'); op.execute('nonsense')"])
async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    where: Settings, url: str, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    async with ConversationStore.open(where) as store:
        kept = await exchange(store)
        path = await store.path(kept)
    with monkeypatch.context() as later:
        next_release(later, where.data_dir, then=then)
        with pytest.raises((StoreError, ZeroDivisionError)):
            async with ConversationStore.open(where):
                pass
    async with ConversationStore.open(where) as store:
        assert await store.path(kept) == path
    assert await look(url, differences) == []


async def test_many_processes_may_begin_with_an_empty_database_at_once(
    where: Settings, tmp_path: Path, url: str
) -> None:
    async def once(n: int) -> str:
        mine = at(tmp_path / str(n), url)
        async with ConversationStore.open(mine) as store:
            return (await store.create(title=str(n))).id

    made = await asyncio.gather(*(once(n) for n in range(5)))
    async with ConversationStore.open(where) as store:
        assert {conversation.id for conversation in await store.list()} == set(made)


async def test_somebody_elses_database_and_a_later_one_are_left_as_they_are(
    where: Settings, url: str
) -> None:
    meddler = await postgres.connect(url)
    await meddler.execute("CREATE TABLE recipes (name text)")
    with pytest.raises(StoreError, match="something other than RallyChat"):
        async with ConversationStore.open(where):
            pass
    assert await meddler.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    await meddler.execute("DROP TABLE recipes")
    async with ConversationStore.open(where):
        await meddler.execute("UPDATE alembic_version SET version_num = '9999'")
    await meddler.close()
    with pytest.raises(StoreError, match="later version"):
        async with ConversationStore.open(where):
            pass


async def test_writers_of_one_person_take_turns_in_every_process(
    where: Settings, tmp_path: Path, url: str
) -> None:
    """Reading first and writing later loses no update, which SQLite's one writer gives and PostgreSQL does not."""
    elsewhere = at(tmp_path / "other", url)
    async with ConversationStore.open(where) as one, ConversationStore.open(elsewhere) as two:
        conversation = await one.create()
        said = [Message.of("user", "x")]
        await asyncio.gather(
            *(store.items.append(conversation.id, said) for _ in range(20) for store in (one, two))
        )
        assert len(await one.path(conversation.id)) == 40  # each followed the one before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"database": "nowhere"}, r"There is no database postgresql://.*/nowhere"),
        ({"username": "stranger"}, r"refuses this user"),
    ],
)
async def test_a_database_that_may_not_be_used_is_named(
    tmp_path: Path, url: str, change: dict[str, str], sentence: str
) -> None:
    other = make_url(url).set(**change).render_as_string(hide_password=False)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=sentence):
        async with ConversationStore.open(at(tmp_path, other)):
            pass


# --- while it is away ------------------------------------------------------------------------------------------


async def test_without_the_server_calls_fail_at_once_and_go_on_when_it_is_back(
    tmp_path: Path, url: str
) -> None:
    async with postgres.cable(url, tmp_path / "cable") as cable:
        async with ConversationStore.open(at(tmp_path, cable.url)) as store:
            conversation = await store.create(title="kept")
            await cable.cut()
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="cannot be reached"):
                    await store.list()
                with pytest.raises(StoreUnavailable, match="cannot be reached"):
                    await store.create()
            await cable.mend()
            assert await store.list() == [conversation]
            await store.create()


async def test_when_the_server_is_back_nobody_is_taken_for_dead_who_could_not_say_that_they_live(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(processes, "BEAT", 3600.0)  # the test says when
    async with (
        ConversationStore.open(at(tmp_path / "a", url)) as one,
        ConversationStore.open(at(tmp_path / "b", url)) as other,
    ):
        conversation = await other.create()
        await other.answers.begin(conversation.id, parent_id=None, user=Message.of("user", "hi"), model="m")
        async with one._database.write() as db:  # nothing could be written for a minute
            await db.execute(text("UPDATE owners SET seen_at = seen_at - interval '1 minute'"))
        now += 60
        assert await one.interrupt_orphans() == 0
        for _ in range(3):
            await one._processes._beat()
            assert await one.interrupt_orphans() == 0
            now += 8
        await one._processes._beat()
        assert await one.interrupt_orphans() == 1  # it had time enough


async def test_an_operator_is_told_once_that_other_processes_are_not_heard(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def levels(said: str) -> list[int]:
        return [record.levelno for record in caplog.records if said in record.message]

    async def said(what: str, *, times: int) -> None:
        async with asyncio.timeout(60):
            while len(levels(what)) < times:  # noqa: ASYNC110 - a log is looked at
                await asyncio.sleep(0.01)

    monkeypatch.setattr("rallychat.store.postgres.RECONNECT", 0.01)
    with caplog.at_level(logging.DEBUG, "rallychat.store.postgres"):
        async with postgres.cable(url, tmp_path / "cable") as cable:
            async with ConversationStore.open(at(tmp_path, cable.url)):
                await cable.cut()
                await said("not heard", times=3)
                await cable.mend()
                await said("heard again", times=1)
            assert levels("not heard").count(logging.WARNING) == 1
            assert levels("heard again") == [logging.INFO]


async def test_a_client_is_told_when_to_come_back(tmp_path: Path, url: str) -> None:
    async with postgres.cable(url, tmp_path / "cable") as cable:
        async with echoing(tmp_path, database_url=SecretStr(cable.url)) as (http, _):
            await cable.cut()
            refused = await http.post("/v1/responses", json={"input": "Hello"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert refused.json()["error"]["code"] == "store_unavailable"
            await cable.mend()
            assert (await http.post("/v1/responses", json={"input": "Hello"})).status_code == 200


# --- the URL ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("mysql://u:hunter2@h/d", "'mysql://', which is not supported"),
        ("postgresql://u:hunter2@h", "names no database"),
        ("nonsense", "cannot be read"),
        ("postgresql://u:hunter2@h/d?colour=red", "unknown parameter 'colour'"),
        ("postgresql://u:hunter2@h/d?sslmode=perhaps", "unknown sslmode 'perhaps'"),
    ],
)
async def test_a_wrong_url_is_refused_without_its_password(tmp_path: Path, given: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        async with ConversationStore.open(at(tmp_path, given)):
            pass
    assert "hunter2" not in str(caught.value)


async def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    gone = at(tmp_path, f"postgresql://me:hunter2@/chats?host={tmp_path}")
    with pytest.raises(StoreUnavailable, match=r"postgresql://me@.*/chats cannot be reached") as caught:
        async with ConversationStore.open(gone):
            pass
    assert "hunter2" not in str(caught.value) + str(gone)
