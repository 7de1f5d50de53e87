"""Backup and restore: all of it or nothing, while others write, from either database into either."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from rallychat.errors import Conflict, RallyChatError, StoreError
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, TokenSpan, backup
from rallychat.store.backup import kept_tables
from rallychat.store.migrate import FOLDER, HEAD
from tests.batch_world import batching, begun, content, ended, jsonl, line

FIRST_WITH_BACKUPS = 7
"""The schema of the first version that could make any."""


def sqlite(folder: Path) -> Settings:
    """A database of its own, whatever the other tests run on."""
    folder.mkdir(exist_ok=True)
    return Settings.model_construct(**{**Settings(data_dir=folder).model_dump(), "database_url": None})


async def filled(where: Settings, *, turns: int = 3) -> str:
    async with ConversationStore.open(where) as store:
        chat = (await store.create(title="Fish", metadata={"a": "ü"})).id
        tip = None
        for n in range(turns):
            said = Message.of("user", f"question {n} about sleep")
            _, answer = await store.answers.begin(chat, parent_id=tip, user=said, model="m")
            span = TokenSpan("log", (n, 2))
            await store.answers.finish(
                answer.id, parts=(Text("answer"),), reason="stop", usage=None, timings=None, span=span
            )
            tip = answer.id
    for name, text in (("catalog/models/mine.toml", "x = 1"), ("models/weights.gguf", "heavy")):
        path = where.data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return chat


async def written(where: Settings, file: Path) -> int:
    async with ConversationStore.open(where) as store:
        return await store.backups.write(file)


async def restored(where: Settings, file: Path) -> int:
    async with ConversationStore.open(where) as store:
        return await store.backups.restore(file)


async def all_of(where: Settings, chat: str) -> list[object]:
    async with ConversationStore.open(where) as store:
        found = await store.contexts.search("sleeping", conversation_id=chat)
        return [
            await store.get(chat),
            await store.path(chat),
            len(found),
        ]


async def test_everything_but_weights_comes_back_in_an_empty_place(tmp_path: Path) -> None:
    one, two, file = sqlite(tmp_path / "one"), sqlite(tmp_path / "two"), tmp_path / "all.zip"
    chat = await filled(one)
    assert await written(one, file) == await restored(two, file) == 7
    assert file.stat().st_mode & 0o777 == 0o600
    assert await all_of(two, chat) == await all_of(one, chat)
    assert (two.data_dir / "catalog/models/mine.toml").read_text() == "x = 1"
    assert not (two.data_dir / "models").exists()
    async with ConversationStore.open(two) as store:
        tip = (await store.get(chat)).tip_id
        await store.answers.begin(chat, parent_id=tip, user=Message.of("user", "and now?"), model="m")


async def test_files_batches_links_personas_and_accounts_come_back_and_work(tmp_path: Path) -> None:
    one, two, file = tmp_path / "one", tmp_path / "two", tmp_path / "all.zip"
    async with batching(one, database_url=None) as (http, service):
        batch = await ended(http, await begun(http, jsonl([line("a", "Hello"), line("b", "!fail 0")])))
        results = [await content(http, batch[f"{kind}_file_id"]) for kind in ("output", "error")]
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        await http.post(f"/v1/conversations/{made}/items", json={"items": [{"role": "user", "content": "x"}]})
        shared = (await http.post(f"/v1/conversations/{made}/shares", json={})).json()
        persona = await http.post("/v1/personas", json={"name": "Cook", "system": "You cook."})
        assert (batch["status"], persona.status_code) == ("completed", 200), persona.text
        await service.accounts.add("anna", "correct horse battery", role="admin")
        rows = await service.store.backups.write(file)
    assert await restored(sqlite(two), file) == rows
    async with batching(two, database_url=None, no_auth=True) as (http, service):
        assert (await http.get(f"/v1/batches/{batch['id']}")).json() == batch
        again = [await content(http, batch[f"{kind}_file_id"]) for kind in ("output", "error")]
        assert again == results
        links = (await http.get(f"/v1/conversations/{made}/shares")).json()["data"]
        assert [link["path"] for link in links] == [shared["path"]]
        assert [one["name"] for one in (await http.get("/v1/personas")).json()["data"]] == ["Cook"]
        assert await service.accounts.people.any()


@pytest.mark.postgres
async def test_what_was_sqlite_becomes_postgresql_and_sqlite_again(tmp_path: Path) -> None:
    url = SecretStr(os.environ["RALLYCHAT_DATABASE_URL"])
    one, three = sqlite(tmp_path / "one"), sqlite(tmp_path / "three")
    two = Settings(data_dir=tmp_path / "two", database_url=url)
    chat = await filled(one)
    await written(one, tmp_path / "first.zip")
    assert await restored(two, tmp_path / "first.zip") == 7
    assert await all_of(two, chat) == await all_of(one, chat)
    await written(two, tmp_path / "second.zip")
    await restored(three, tmp_path / "second.zip")
    assert await all_of(three, chat) == await all_of(one, chat)


async def test_a_backup_made_while_others_write_is_of_one_moment(tmp_path: Path) -> None:
    one, two, file = Settings(data_dir=tmp_path / "one"), sqlite(tmp_path / "two"), tmp_path / "all.zip"
    chat = await filled(one, turns=30)
    busy = True

    async def talk(store: ConversationStore) -> None:
        while busy:
            tip = (await store.get(chat)).tip_id
            said = Message.of("user", "more")
            _, answer = await store.answers.begin(chat, parent_id=tip, user=said, model="m")
            await store.answers.finish(
                answer.id, parts=(Text("yes"),), reason="stop", usage=None, timings=None
            )

    async with ConversationStore.open(one) as store:
        talking = asyncio.create_task(talk(store))
        async with ConversationStore.open(one) as other:
            await other.backups.write(file)
        busy = False
        await talking
    await restored(two, file)
    async with ConversationStore.open(two) as store:
        path = await store.path(chat)  # its tip is there, and every message leads to the root
        assert path[-1].id == (await store.get(chat)).tip_id
        assert len(path) >= 60
        assert path[0].parent_id is None


async def test_a_file_that_is_deleted_or_still_coming_while_a_backup_is_made_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, file = sqlite(tmp_path / "a"), tmp_path / "b.zip"
    copied = backup._copied
    async with ConversationStore.open(here) as store:
        begun = [store.files.begin() for _ in range(3)]
        first, gone, _coming = sorted(name for name, _ in begun)
        for name, stream in begun:
            stream.write(b"x")
            if name in (first, gone):
                store.files.land(name, stream)
                await store.files.keep(name, 1, purpose="batch", filename="f")

        def copying(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, object]:
            (here.data_dir / "files" / gone).unlink(missing_ok=True)
            return copied(path, archive, name)

        monkeypatch.setattr(backup, "_copied", copying)
        await store.backups.write(file)
        for _, stream in begun:
            stream.close()
    await restored(sqlite(tmp_path / "c"), file)
    assert [path.name for path in (tmp_path / "c" / "files").iterdir()] == [first]


async def test_an_answer_that_was_being_made_is_restored_as_interrupted(tmp_path: Path) -> None:
    one, two, file = sqlite(tmp_path / "one"), sqlite(tmp_path / "two"), tmp_path / "all.zip"
    async with ConversationStore.open(one) as store:
        chat = (await store.create()).id
        _, answer = await store.answers.begin(
            chat, parent_id=None, user=Message.of("user", "hi"), model="m", alone=True
        )
        await store.answers.save([(answer.id, (Text("half"),), None)])
        await store.backups.write(file)
    await restored(two, file)
    async with ConversationStore.open(two) as store:
        assert (await store.message(answer.id)).finish_reason == "interrupted"
        assert (await store.get(chat)).answering is None


async def test_a_place_that_is_not_empty_and_a_file_that_is_there_are_left_alone(tmp_path: Path) -> None:
    one, file = sqlite(tmp_path / "one"), tmp_path / "all.zip"
    chat = await filled(one)
    await written(one, file)
    before = await all_of(one, chat)
    with pytest.raises(Conflict, match="catalog is there already"):
        await restored(one, file)
    (one.data_dir / "catalog/models/mine.toml").unlink()
    (one.data_dir / "catalog/models").rmdir()
    with pytest.raises(Conflict, match="is not empty: it has conversations"):
        await restored(one, file)
    with pytest.raises(Conflict, match="There is a file"):
        await written(one, file)
    assert await all_of(one, chat) == before
    assert not [path for path in one.data_dir.iterdir() if path.name.startswith("restoring-")]


def changed(file: Path, to: Path, **manifest: object) -> Path:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(
                name, json.dumps({**json.loads(data), **manifest}) if name == "manifest.json" else data
            )
    return to


def without(file: Path, to: Path, *, table: str, column: str, schema: str) -> Path:
    """The backup as a program of an older schema had written it, whose `table` has no such column."""
    member = f"tables/{table}.jsonl"
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    rows = [json.loads(line) for line in contents[member].splitlines()]
    assert rows
    assert all(column in row for row in rows)
    kept = [{name: value for name, value in row.items() if name != column} for row in rows]
    contents[member] = b"".join(json.dumps(row).encode() + b"\n" for row in kept)
    manifest = json.loads(contents["manifest.json"])
    manifest["schema"] = schema
    manifest["members"][member]["sha256"] = hashlib.sha256(contents[member]).hexdigest()
    contents["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return to


async def test_a_backup_of_an_older_schema_is_restored_into_todays(tmp_path: Path) -> None:
    one, two, file = sqlite(tmp_path / "one"), sqlite(tmp_path / "two"), tmp_path / "all.zip"
    chat = await filled(one)
    await written(one, file)
    old = without(file, tmp_path / "old.zip", table="conversations", column="elsewhere", schema="0007")
    assert await restored(two, old) == 7
    assert await all_of(two, chat) == await all_of(one, chat)
    async with ConversationStore.open(two) as store:
        assert (await store.get(chat)).elsewhere is None
        await store.update(chat, elsewhere=True)
        tip = (await store.get(chat)).tip_id
        await store.answers.begin(chat, parent_id=tip, user=Message.of("user", "and now?"), model="m")
    await written(two, tmp_path / "again.zip")


@pytest.mark.migrates
@pytest.mark.sqlite
@pytest.mark.parametrize("schema", [f"{n:04}" for n in range(FIRST_WITH_BACKUPS, int(HEAD) + 1)])
def test_what_a_backup_of_an_older_schema_lacks_has_a_value_of_its_own(tmp_path: Path, schema: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{tmp_path}/old.db", poolclass=NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        there = inspect(connection)
        had = {
            table.name: {column["name"] for column in there.get_columns(table.name)}
            for table in kept_tables()
            if there.has_table(table.name)
        }
    engine.dispose()
    added = [c for table in kept_tables() for c in table.c if c.name not in had.get(table.name, {c.name})]
    assert [str(c) for c in added if not (c.nullable or c.default or c.server_default)] == []


async def test_a_backup_of_a_later_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    one, two, file = sqlite(tmp_path / "one"), sqlite(tmp_path / "two"), tmp_path / "all.zip"
    await filled(one)
    await written(one, file)
    for about, said in (({"schema": "9999"}, "schema 9999, and this one knows"), ({"format": 2}, "format 2")):
        with pytest.raises(StoreError, match=f"a later version of RallyChat .{said}") as refused:
            await restored(two, changed(file, tmp_path / "later.zip", **about))
        assert "update RallyChat" in refused.value.hint
    with pytest.raises(StoreError, match="is no backup"):
        await restored(two, changed(file, tmp_path / "other.zip", members={"../../x": {"sha256": ""}}))
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match="is no backup"):
        await restored(two, tmp_path / "text.zip")
    with pytest.raises(StoreError, match="cannot be read"):
        await restored(two, tmp_path / "nowhere.zip")
    async with ConversationStore.open(two) as store:
        assert await store.list() == []


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_backup_is_refused_whole(tmp_path: Path, data: st.DataObject) -> None:
    file, two = tmp_path / "all.zip", sqlite(tmp_path / "two")
    if not file.exists():
        one = sqlite(tmp_path / "one")
        asyncio.run(filled(one))
        asyncio.run(written(one, file))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged.zip").write_bytes(content)

    async def attempt() -> None:
        async with ConversationStore.open(two) as store:
            try:
                await store.backups.restore(tmp_path / "damaged.zip")
            except RallyChatError:
                assert await store.list() == []
                return
            # what was changed means nothing: a date, an attribute of the archive
            [conversation] = await store.list()
            assert len(await store.path(conversation.id)) == 6
            await store.delete(conversation.id)
        for path in (two.data_dir / "catalog/models/mine.toml",):
            path.unlink()
            path.parent.rmdir()

    asyncio.run(attempt())
