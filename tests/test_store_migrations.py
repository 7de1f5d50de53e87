"""Migrations: they lead to today's tables, from the first schema on, and lose no row on the way."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from rallychat.errors import StoreError
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, migrate, search
from rallychat.store.sqlite import configure
from rallychat.store.tables import metadata

pytestmark = [pytest.mark.migrates, pytest.mark.sqlite]  # test_postgres.py holds the same of PostgreSQL

# The schema as 0001 was released. Never change it: databases out there look like this.
FIRST = """
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,
  CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));
INSERT INTO alembic_version VALUES ('0001');
CREATE TABLE conversations (id VARCHAR(40) NOT NULL, user_id VARCHAR(64) DEFAULT 'local' NOT NULL, title TEXT NOT NULL,
  system TEXT NOT NULL, model TEXT, sampling JSON NOT NULL, tip_id VARCHAR(40), created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL, CONSTRAINT pk_conversations PRIMARY KEY (id));
CREATE INDEX ix_conversations_recent ON conversations (user_id, updated_at, id);
CREATE TABLE messages (id VARCHAR(40) NOT NULL, conversation_id VARCHAR(40) NOT NULL, parent_id VARCHAR(40),
  role VARCHAR(16) NOT NULL, model TEXT, status VARCHAR(16) NOT NULL, owner VARCHAR(40), finish_reason VARCHAR(16),
  error TEXT, usage JSON, timings JSON, created_at DATETIME NOT NULL, parts JSON NOT NULL, span_key TEXT,
  span_ids BLOB, report JSON, CONSTRAINT pk_messages PRIMARY KEY (id),
  CONSTRAINT fk_messages_conversation_id FOREIGN KEY(conversation_id) REFERENCES conversations (id),
  CONSTRAINT fk_messages_parent_id FOREIGN KEY(parent_id) REFERENCES messages (id));
CREATE INDEX ix_messages_conversation ON messages (conversation_id, id);
CREATE INDEX ix_messages_parent ON messages (parent_id);
CREATE INDEX ix_messages_owner ON messages (owner);
CREATE TABLE preferences (user_id VARCHAR(64) DEFAULT 'local' NOT NULL, name VARCHAR(100) NOT NULL,
  value TEXT NOT NULL, CONSTRAINT pk_preferences PRIMARY KEY (user_id, name));
INSERT INTO conversations VALUES ('conv_1', 'local', 'Fish', '', 'echo', '{"seed":1}', 'msg_2',
  '2026-01-02 03:04:05.000006', '2026-01-02 03:04:05.000006');
INSERT INTO messages VALUES
  ('msg_1', 'conv_1', NULL, 'user', NULL, 'complete', NULL, NULL, NULL, NULL, NULL, '2026-01-02 03:04:05.000006',
   '[{"kind":"text","text":"Do they sleep?"}]', NULL, NULL, NULL),
  ('msg_2', 'conv_1', 'msg_1', 'assistant', 'echo', 'complete', NULL, 'stop', NULL,
   '{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}', NULL, '2026-01-02 03:04:05.000006',
   '[{"kind":"reasoning","text":"hm"},{"kind":"text","text":"Yes."}]', 'log', x'0100000002000000', NULL);
INSERT INTO preferences VALUES ('local', 'model', 'echo');
"""


def ours(name: str | None, kind: str, parents: object) -> bool:
    """Everything but the tables that SQLite keeps for the full-text index."""
    return kind != "table" or name is None or name.partition("_")[0] != search.TABLE


OPTIONS = {"compare_server_default": True, "include_name": ours}


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@contextmanager
def connected(file: Path) -> Generator[Connection]:
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    configure(engine, busy_timeout=1, foreign_keys=False)
    with engine.connect() as connection, connection.begin():
        yield connection


async def exchange(store: ConversationStore) -> str:
    conversation = await store.create(title="kept")
    _, answer = await store.answers.begin(
        conversation.id, parent_id=None, user=Message.of("user", "hi"), model="m"
    )
    await store.answers.finish(answer.id, parts=(Text("hello"),), reason="stop", usage=None, timings=None)
    return conversation.id


async def test_migrations_lead_to_todays_tables(where: Settings) -> None:
    async with ConversationStore.open(where):
        pass
    with connected(where.database) as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == migrate.HEAD


def test_head_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(migrate.FOLDER))
    assert scripts.get_heads() == [migrate.HEAD]


async def test_a_database_of_the_first_schema_is_read_by_todays_code(where: Settings) -> None:
    with closing(sqlite3.connect(where.database)) as old:
        old.executescript(FIRST)
    async with ConversationStore.open(where) as store:
        [conversation] = await store.list()
        assert (conversation.title, conversation.sampling.seed) == ("Fish", 1)
        asked, answer = await store.path(conversation.id)
        assert (asked.text, answer.text, answer.message.reasoning) == ("Do they sleep?", "Yes.", "hm")
        assert answer.span is not None
        assert answer.span.ids == (1, 2)
        assert answer.created_at.isoformat() == "2026-01-02T03:04:05.000006+00:00"
        assert [found for found, _ in await store.contexts.search("sleeping")] == ["msg_1"]
        await store.answers.begin(
            "conv_1", parent_id="msg_2", user=Message.of("user", "Where?"), model="echo"
        )
        assert len(await store.path("conv_1")) == 4
    with connected(where.database) as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert compare_metadata(context, metadata) == []


async def test_links_made_before_lengths_were_kept_show_what_is_there(
    where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(migrate, "HEAD", "0010")
        with connected(where.database) as connection:
            migrate.upgrade(connection, "a database")
            connection.exec_driver_sql(
                "INSERT INTO conversations (id, title, system, sampling, tip_id, created_at, updated_at)"
                " VALUES ('conv_1', 'Fish', '', '{}', 'msg_1', '2026-01-02', '2026-01-02')"
            )
            connection.exec_driver_sql(
                "INSERT INTO messages (id, conversation_id, role, status, created_at, parts) VALUES"
                " ('msg_1', 'conv_1', 'assistant', 'complete', '2026-01-02 00:00:00',"
                """ '[{"kind":"reasoning","text":"hm"},{"kind":"text","text":"Yes."}]')"""
            )
            connection.exec_driver_sql(
                "INSERT INTO shares (id, conversation_id, tip_id, token, created_at)"
                " VALUES ('share_1', 'conv_1', 'msg_1', 'token', '2026-01-02 00:00:00')"
            )
    async with ConversationStore.open(where) as store:
        assert (await store.shares.read("token"))[1][0].text == "Yes."
    with connected(where.database) as connection:
        assert connection.exec_driver_sql("SELECT length FROM shares").scalar() == len("hmYes.")


NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "next", "{head}"

def upgrade():
    with op.batch_alter_table("conversations", recreate="always") as table:
        table.add_column(sa.Column("starred", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("messages", recreate="always") as table:
        table.add_column(sa.Column("note", sa.Text))
    {then}
"""


def next_release(patch: pytest.MonkeyPatch, folder: Path, *, then: str = "pass") -> None:
    """What a later version may bring: both tables rebuilt, the way SQLite alters them."""
    migrations = folder / "migrations"
    shutil.copytree(migrate.FOLDER, migrations)
    (migrations / "versions" / "9999_next.py").write_text(NEXT.format(then=then, head=migrate.HEAD))
    patch.setattr(migrate, "FOLDER", migrations)
    patch.setattr(migrate, "HEAD", "next")


async def test_rebuilding_tables_in_a_migration_loses_no_row(
    where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConversationStore.open(where) as store:
        kept = await exchange(store)
        path = await store.path(kept)
    next_release(monkeypatch, where.data_dir)
    async with ConversationStore.open(where) as store:
        assert await store.path(kept) == path
    with connected(where.database) as connection:
        assert connection.exec_driver_sql("SELECT starred FROM conversations").all() == [(0,)]


@pytest.mark.parametrize("then", ["raise sa.exc.OperationalError('x', None, Exception('disk'))", "1 / 0"])
async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    where: Settings, monkeypatch: pytest.MonkeyPatch, then: str
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
    with connected(where.database) as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert context.get_current_revision() == migrate.HEAD
        assert compare_metadata(context, metadata) == []


async def test_a_migration_that_breaks_a_link_is_undone(
    where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConversationStore.open(where) as store:
        kept = await exchange(store)
    with monkeypatch.context() as later:
        next_release(later, where.data_dir, then="op.execute('DELETE FROM conversations')")
        with pytest.raises(StoreError, match="a row of 'messages' points nowhere"):
            async with ConversationStore.open(where):
                pass
    async with ConversationStore.open(where) as store:
        assert len(await store.path(kept)) == 2


async def test_alembic_is_imported_only_when_there_is_something_to_do(where: Settings) -> None:
    async with ConversationStore.open(where):
        pass
    script = """
import asyncio, sys
from pathlib import Path
from rallychat.settings import Settings
from rallychat.store import ConversationStore

async def main():
    async with ConversationStore.open(Settings(data_dir=Path(sys.argv[1]))) as store:
        await store.create()

asyncio.run(main())
print("alembic" in sys.modules)
"""
    command = (sys.executable, "-c", script, str(where.data_dir))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert said == b"False\n"
