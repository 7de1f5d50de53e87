"""Everything of one user: in one file for them, and gone for good if they want."""

from __future__ import annotations

import asyncio
import json
import os
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import FileResponse

from rallychat.api.myself import exported
from rallychat.chat import ChatService
from rallychat.errors import Conflict, NotFound
from rallychat.identity import Person, acting_as
from rallychat.messages import Message
from rallychat.retention import emptying_trash
from rallychat.settings import Settings
from rallychat.store import ConversationStore, Memory
from rallychat.store.belongings import NOBODYS, rows_of
from rallychat.store.tables import metadata
from tests.accounts_world import PASSWORD, World, cheap_passwords, people

__all__ = ["cheap_passwords"]

CANARY = "ornithorhynchus"


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_table_s_rows_are_somebody_s_or_nobody_s(table: object) -> None:
    """A table that was added and not thought of would be neither exported nor deleted."""
    assert (rows_of(table, "user_x") is None) == (table.name in NOBODYS)  # type: ignore[arg-type, attr-defined]


async def lived(world: World, name: str) -> None:
    """A user who has used everything, and said the canary everywhere."""
    service, user = world.service, world.users[name]
    with acting_as(user.id):
        conversation = await service.store.create(title=CANARY, system=CANARY, metadata={"a": CANARY})
        first = await service.turn(conversation.id, f"{CANARY} one")
        await first.wait()
        again = await service.regenerate(first.message_id)
        await again.wait()
        await service.store.contexts.remember(conversation.id, Memory("facts", CANARY, again.message_id))
        await service.accounts.create_key(CANARY)
    answer = await world.ask(
        "POST", "/v1/responses", as_=name, json={"input": CANARY}, headers={"idempotency-key": "k"}
    )
    assert answer.status_code == 200
    held = {"file": ("held.jsonl", CANARY.encode())}
    await world.ask("POST", "/v1/files", as_=name, data={"purpose": "batch"}, files=held)
    await service.idle.settled()


def opened(answer: httpx.Response, folder: Path) -> dict[str, str]:
    path = folder / "got.zip"
    path.write_bytes(answer.content)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


async def test_an_export_whose_sending_is_broken_off_leaves_no_file(tmp_path: Path) -> None:
    async def broken_off(*_: Any) -> Any:
        raise asyncio.CancelledError

    async with people(tmp_path) as world:
        with acting_as(world.users["ben"].id):
            answer = await exported(world.service)
        assert isinstance(answer, FileResponse)
        folder = Path(answer.path).parent
        assert await asyncio.to_thread(folder.exists)
        with pytest.raises(asyncio.CancelledError):
            await answer({"type": "http", "method": "GET", "headers": []}, broken_off, broken_off)
        assert not await asyncio.to_thread(folder.exists)


@pytest.mark.sqlite  # on PostgreSQL it also reads by itself, every few seconds
async def test_exports_hold_the_database_up_for_nobody_and_leave_out_what_is_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = 0
    seen: list[int] = []
    async with ConversationStore.open(Settings(data_dir=tmp_path / "data")) as store:
        read, zipped = store._database.read, zipfile.ZipFile.write

        @asynccontextmanager
        async def counted() -> AsyncIterator[Any]:
            nonlocal reading
            reading += 1
            async with read() as db:
                yield db
            reading -= 1

        def watched(archive: zipfile.ZipFile, file: Path, name: str) -> None:
            seen.append(reading)
            if name.endswith(ids[1]):
                file.unlink(missing_ok=True)
            zipped(archive, file, name)

        ids = []
        for _ in range(2):
            name, stream = store.files.begin()
            await store.files.keep(name, store.files.land(name, stream), purpose="user_data", filename="f")
            ids.append(name)
        monkeypatch.setattr(store._database, "read", counted)
        monkeypatch.setattr(zipfile.ZipFile, "write", watched)
        to = [tmp_path / f"{n}.zip" for n in range(6)]
        await asyncio.gather(*(store.belongings.export("local", path) for path in to))
    assert seen == [0] * 12
    for path in to:
        with zipfile.ZipFile(path) as archive:
            assert [each for each in archive.namelist() if "files/" in each] == [f"files/{ids[0]}"]


async def test_an_export_holds_every_branch_and_no_secret_and_nothing_of_others(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        await lived(world, "ben")
        with acting_as(world.users["eve"].id):
            await world.service.store.create(title="eve's own")
        answer = await world.ask("GET", "/v1/me/export", as_="ben")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
        files = opened(answer, tmp_path)
    held = [json.loads(text) for name, text in files.items() if name.startswith("conversations/")]
    (one,) = [each for each in held if each["conversation"]["title"] == CANARY]
    assert [row["role"] for row in one["messages"]] == ["user", "assistant", "assistant"]
    assert one["messages"][1]["parent_id"] == one["messages"][2]["parent_id"] == one["messages"][0]["id"]
    assert [memory["text"] for memory in one["memories"]] == [CANARY]
    reports = json.loads(files[f"reports/{one['conversation']['id']}.json"])
    answers = [row["id"] for row in one["messages"] if row["role"] == "assistant"]
    assert [*reports] == answers
    assert all(one["messages"][0]["id"] in report["kept"] for report in reports.values())
    assert all("report" not in row for row in one["messages"])
    assert any(each["responses"] for each in held)
    assert [text for name, text in files.items() if name.startswith("files/")] == [CANARY]
    assert {"users.json", "api_keys.json", "sessions.json", "about.json"} <= set(files)
    whole = "".join(files.values())
    assert "eve's own" not in whole
    for hidden in ("$argon2", "hash", world.tokens["ben"], PASSWORD):
        assert hidden not in whole


async def test_who_is_erased_is_nowhere_in_the_database_s_files(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        await lived(world, "ben")
        ben = world.users["ben"].id
        if world.service.settings.database.exists():
            assert CANARY.encode() in raw(tmp_path)
        wrong = await world.ask("POST", "/v1/me/erase", as_="ben", json={"password": "not mine"})
        assert wrong.status_code == 401
        answer = await world.ask("POST", "/v1/me/erase", as_="ben", json={"password": PASSWORD})
        assert answer.json() == {"id": ben, "deleted": True}
        assert (await world.ask("GET", "/v1/me", as_="ben")).status_code == 401
        async with world.service.store.belongings._database.read() as db:
            from sqlalchemy import func, select

            for table in metadata.sorted_tables:
                if (which := rows_of(table, ben)) is not None:
                    assert (await db.scalars(select(func.count()).select_from(table).where(which))).one() == 0
        deeds = await world.service.accounts.deeds.list()
        assert not any("ben" in (deed.target, deed.actor_name) for deed in deeds)
        if world.service.settings.database.exists():
            assert CANARY.encode() not in raw(tmp_path).lower()
            assert list((tmp_path / "run").glob("*.journal")) == []
        with acting_as(world.users["eve"].id):
            assert await world.service.store.list() == []


def raw(folder: Path) -> bytes:
    """Every byte of the database and the files beside it."""
    return b"".join(
        file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.suffix != ".zip"
    )


async def test_an_answer_that_grows_ends_with_its_user(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        with acting_as(world.users["ben"].id):
            conversation = await world.service.store.create()
            run = await world.service.turn(conversation.id, "!count 100000")
        answer = await world.ask("DELETE", f"/v1/users/{world.users['ben'].id}", as_="ada")
        assert answer.status_code == 200
        assert run.done
        assert (await world.ask("DELETE", f"/v1/users/{world.users['ben'].id}", as_="ada")).status_code == 404


@pytest.mark.parametrize("discarded", [False, True])
async def test_an_answer_that_another_process_makes_ends_with_its_user(
    tmp_path: Path, discarded: bool
) -> None:
    async with people(tmp_path) as world, ChatService.open(Settings(data_dir=tmp_path)) as elsewhere:
        ben = world.users["ben"].id
        with acting_as(ben):
            conversation = await elsewhere.store.create(model="echo")
            run = await elsewhere.turn(conversation.id, "!count 100000")
            watched = await world.service.follow(run.message_id)
            assert watched is not None
            if discarded:
                await world.service.store.library.discard(conversation.id)
        answer = await world.ask("DELETE", f"/v1/users/{ben}", as_="ada")
        assert (answer.status_code, answer.text) == (200, answer.text)
        assert watched.done
        async with asyncio.timeout(60):
            await run.wait()


async def test_two_admins_who_erase_each_other_at_once_leave_one(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        accounts, ada, ben = world.service.accounts, world.users["ada"].id, world.users["ben"].id
        await accounts.people.change(ben, role="admin")

        async def erased(whom: str, by: str) -> None:
            with acting_as(Person(by, "admin")):
                await accounts.erase(whom)

        both = await asyncio.gather(erased(ben, ada), erased(ada, ben), return_exceptions=True)
        assert sorted(type(each).__name__ for each in both) == ["Conflict", "NoneType"]
        assert [user.role for user in await accounts.people.list()] == ["admin", "member"]


async def test_the_only_admin_is_not_erased_while_there_are_others(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        accounts, users = world.service.accounts, world.users
        answer = await world.ask("POST", "/v1/me/erase", as_="ada", json={"password": PASSWORD})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        for name in ("ben", "eve"):
            await accounts.erase(users[name].id)
        await accounts.erase(users["ada"].id)
        assert not await accounts.people.any()


async def test_only_the_person_or_an_admin_erases_and_the_local_one_is_not_an_account(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        answer = await world.ask("DELETE", f"/v1/users/{world.users['ben'].id}", as_="eve")
        assert answer.status_code == 403
        with pytest.raises(Conflict):
            await world.service.accounts.sure_of_myself("", address="")
        with pytest.raises(NotFound):
            await world.service.accounts.erase("local")


async def test_the_file_is_written_anew_while_another_process_has_it_open(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    async with ConversationStore.open(settings) as one, ConversationStore.open(settings) as other:
        await other.create(title="kept")
        gone = await one.create(title=CANARY)
        await one.delete(gone.id)
        await one.belongings._database.scrub()
        assert [each.title for each in await other.list()] == ["kept"]
        if settings.database.exists():
            assert CANARY.encode() not in raw(tmp_path)


async def test_what_a_request_still_stored_for_who_was_erased_meanwhile_is_gone_too(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        ben, store = world.users["ben"].id, world.service.store
        await world.service.erase_user(ben)
        with acting_as(ben):  # the end of an import, say
            late = await store.create(title=CANARY)
            await store.items.append(late.id, [Message.of("user", CANARY)])
            name, stream = store.files.begin()
            await store.files.keep(name, store.files.land(name, stream), purpose="batch", filename=CANARY)
        with acting_as(world.users["eve"].id):
            kept = await store.create(title="kept")
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        async with emptying_trash(store, days=1), asyncio.timeout(60):
            with acting_as(ben):
                while await store.library.every() or await store.files.list(  # noqa: ASYNC110 - nobody tells
                    limit=1
                ):
                    await asyncio.sleep(0)
        with acting_as(world.users["eve"].id):
            assert await store.library.every() == [kept.id]
        assert await store.belongings.sweep() == 0
    assert not await asyncio.to_thread(store.files.path(name).exists)


async def test_what_a_crash_left_of_an_export_or_import_on_its_way_is_swept(tmp_path: Path) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        with store.files.scratch() as busy:
            left = busy.with_name("left")
            left.mkdir()
            (left / "export.zip").write_bytes(CANARY.encode())
            os.utime(left, (1e9, 1e9))
            await store.files.sweep()
            assert (busy.is_dir(), left.exists(), busy.is_relative_to(tmp_path)) == (True, False, True)
        assert not busy.exists()
