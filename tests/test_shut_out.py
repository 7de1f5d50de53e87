"""Who is disabled or erased: nothing goes on for them, wherever it was begun, and nothing of theirs is shown."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rallychat.api import welcome
from rallychat.api.welcome import Watch, Welcome
from rallychat.errors import Forbidden
from rallychat.identity import Person, acting_as
from rallychat.messages import Finished
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests.accounts_world import World, cheap_passwords, people
from tests.batch_world import CHAT, jsonl, line, until, with_slow

__all__ = ["cheap_passwords"]

ENDLESS = [line("long", "!count 100000", model="slow")]


async def disabled(world: World, name: str, *, now: bool = True) -> None:
    path = f"/v1/users/{world.users[name].id}"
    answer = await world.ask("POST", path, as_="ada", json={"disabled": now})
    assert answer.status_code == 200


async def batch_of(world: World, name: str, lines: list[dict[str, Any]]) -> str:
    """A batch whose first line is answered."""
    files = {"file": ("lines.jsonl", jsonl([line("first", "platypus", model="slow"), *lines]))}
    held = await world.ask("POST", "/v1/files", as_=name, data={"purpose": "batch"}, files=files)
    asked = {"input_file_id": held.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = str((await world.ask("POST", "/v1/batches", as_=name, json=asked)).json()["id"])
    with acting_as(world.users[name].id):
        async with asyncio.timeout(60):
            while not (await world.service.store.batches.get(batch)).completed:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return batch


async def test_an_answer_ends_with_the_account_it_is_for(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path)) as world:
        with acting_as(world.users["ben"].id):
            run = await world.service.turn(
                (await world.service.store.create()).id, "!count 100000", model="slow"
            )
        with acting_as(world.users["eve"].id):
            other = await world.service.turn(
                (await world.service.store.create()).id, "!count 100000", model="slow"
            )
        await disabled(world, "ben")
        async with asyncio.timeout(60):
            end = await run.wait()
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert not other.done
        await other.stop()


async def test_a_batch_is_called_off_with_the_account_it_is_for(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path), batches=True) as world:
        batch = await batch_of(world, "ben", ENDLESS)
        await disabled(world, "ben")
        with acting_as(world.users["ben"].id):
            async with asyncio.timeout(60):
                while (found := await world.service.store.batches.get(batch)).open:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert (found.status, found.completed) == ("cancelled", 1)


async def test_an_answer_ends_that_a_request_begins_while_its_account_is_disabled(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path)) as world:
        ben = world.users["ben"].id
        with acting_as(Person(ben, via="session")):
            chat = await world.service.store.create()
            await disabled(world, "ben")
            run = await world.service.turn(chat.id, "!count 100000", model="slow")
        async with asyncio.timeout(60):
            end = await run.wait()
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"


async def test_no_batch_begins_that_a_request_asks_for_while_its_account_is_disabled(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        files = {"file": ("lines.jsonl", jsonl([line("first")]))}
        held = await world.ask("POST", "/v1/files", as_="ben", data={"purpose": "batch"}, files=files)
        await disabled(world, "ben")
        store = world.service.store.batches
        with acting_as(Person(world.users["ben"].id, via="session")):
            with pytest.raises(Forbidden):
                await store.create(
                    input_file_id=held.json()["id"],
                    endpoint=CHAT,
                    completion_window="24h",
                    lives=timedelta(hours=24),
                )
            assert await store.list(limit=9) == []


async def test_a_link_shows_nothing_while_its_owner_is_disabled(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        items = [{"type": "message", "role": "user", "content": "platypus"}]
        made = await world.ask("POST", "/v1/conversations", as_="ben", json={"items": items})
        path = f"/v1/conversations/{made.json()['id']}/shares"
        link = (await world.ask("POST", path, as_="ben", json={})).json()["path"]
        assert "platypus" in (await world.ask("GET", link)).text
        await disabled(world, "ben")
        shut = await world.ask("GET", link)
        assert (shut.status_code, "platypus" in shut.text) == (404, False)
        await disabled(world, "ben", now=False)
        assert (await world.ask("GET", link)).status_code == 200


async def test_a_batch_ends_with_its_erased_user_and_its_answers_are_gone(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path), batches=True) as world:
        await batch_of(world, "ben", ENDLESS)
        assert [*(tmp_path / "batches").iterdir()]
        answer = await world.ask("DELETE", f"/v1/users/{world.users['ben'].id}", as_="ada")
        assert answer.status_code == 200
        await until(lambda: not [*(tmp_path / "batches").iterdir()])
        await until(lambda: world.service.pool.engines()[0].queue.idle)


async def test_what_a_batch_of_an_erased_user_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "batches").mkdir()
    left = tmp_path / "batches" / "batch_0643a.jsonl"
    left.write_text("platypus")
    async with people(tmp_path, batches=True):
        await until(lambda: not left.exists())


async def test_an_answer_ends_whose_user_another_process_has_erased(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path)) as world:
        with acting_as(world.users["ben"].id):
            run = await world.service.turn(
                (await world.service.store.create()).id, "!count 100000", model="slow"
            )
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as elsewhere:
            await elsewhere.belongings.erase(world.users["ben"].id)
        async with asyncio.timeout(60):
            await run.wait()
        await until(lambda: not world.service.runs.growing)


async def asked_for(world: World, name: str) -> tuple[str, str]:
    """An answer without end of somebody: the id of its response, and of the run that makes it."""
    asked = {"input": "!count 100000", "model": "slow", "background": True}
    made = await world.ask("POST", "/v1/responses", as_=name, json=asked)
    assert made.status_code == 200, made.text
    with acting_as(world.users[name].id):
        run = world.service.runs.of_message(made.json()["id"].replace("resp_", "msg_"))
    assert run is not None
    return made.json()["id"], run.id


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches is looked at more often than it is worth elsewhere."""
    monkeypatch.setattr(welcome, "LOOK", 0.05)


@pytest.mark.usefixtures("soon")
async def test_a_stream_ends_with_its_key_and_the_answer_goes_on(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path)) as world:
        response, run_id = await asked_for(world, "ben")
        headers = await world.key("ben", "chat")
        watching = asyncio.create_task(
            world.http.get(f"/v1/responses/{response}?stream=true", headers=headers)
        )
        with acting_as(world.users["ben"].id):
            run = world.service.runs.get(run_id)
            await until(lambda: bool(run._viewers))
            [key] = await world.service.accounts.keys()
            await world.service.accounts.revoke(key.id)
        async with asyncio.timeout(60):
            seen = (await watching).text
        last = seen.rstrip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        assert "response.completed" not in seen
        assert not run.done
        await run.stop()


@pytest.mark.usefixtures("soon")
async def test_what_the_page_watches_ends_with_the_login_and_the_answer_goes_on(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path), mount=True) as world:
        _, run_id = await asked_for(world, "ben")
        with acting_as(world.users["ben"].id):
            run = world.service.runs.get(run_id)
        watching = asyncio.create_task(world.ask("GET", f"/ui/runs/{run_id}/stream", as_="ben"))
        other = asyncio.create_task(world.ask("GET", f"/ui/runs/{run_id}/stream", as_="eve"))
        await until(lambda: bool(run._viewers))
        assert (await other).status_code == 404
        assert (await world.ask("POST", "/logout", as_="ben")).status_code == 303
        async with asyncio.timeout(60):
            seen = (await watching).text
        assert "event: begin" in seen
        assert "event: end" not in seen
        assert not run.done
        await run.stop()


@pytest.mark.usefixtures("soon")
async def test_a_stream_goes_on_for_who_may_still_come_in(tmp_path: Path) -> None:
    async with people(with_slow(tmp_path)) as world:
        asked = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "!count 40"}]}
        said = await world.ask("POST", CHAT, as_="ben", json=asked)
        assert said.text.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("soon")
async def test_all_streams_of_a_key_end_by_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Person | None] = []
    joined: list[Welcome] = []
    join = Watch.join

    def joining(watch: Watch, stream: Welcome) -> None:
        joined.append(stream)
        join(watch, stream)

    monkeypatch.setattr(Watch, "join", joining)
    async with people(with_slow(tmp_path)) as world:
        of_key = world.service.accounts.of_key

        async def looked(secret: str) -> Person | None:
            looks.append(await of_key(secret))
            return looks[-1]

        monkeypatch.setattr(world.service.accounts, "of_key", looked)
        response, run_id = await asked_for(world, "ben")
        headers = await world.key("ben", "chat")
        path = f"/v1/responses/{response}?stream=true"
        watching = [asyncio.create_task(world.http.get(path, headers=headers)) for _ in range(5)]
        await until(lambda: len(joined) == len(watching))
        with acting_as(world.users["ben"].id):
            run = world.service.runs.get(run_id)
            [key] = await world.service.accounts.keys()
            await world.service.accounts.revoke(key.id)
        async with asyncio.timeout(60):
            seen = [(await stream).text for stream in watching]
        assert [text.count("invalid_api_key") for text in seen] == [1] * len(watching)
        assert looks.count(None) == 1
        await run.stop()


WHOLE: dict[str, tuple[str, dict[str, object]]] = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": "!count 100000"}]}),
    "completion": ("/v1/completions", {"prompt": "!count 100000"}),
    "response": ("/v1/responses", {"input": "!count 100000"}),
    "unstored response": ("/v1/responses", {"input": "!count 100000", "store": False}),
}


@pytest.mark.parametrize("shut_out", ["key", "account"])
@pytest.mark.parametrize("asked", WHOLE)
async def test_a_whole_answer_is_not_delivered_to_who_was_shut_out_meanwhile(
    tmp_path: Path, asked: str, shut_out: str
) -> None:
    path, body = WHOLE[asked]
    async with people(with_slow(tmp_path)) as world:
        headers = await world.key("ben", "chat")
        theirs = asyncio.create_task(world.http.post(path, headers=headers, json={"model": "slow", **body}))
        await until(lambda: world.service.runs.count_of(world.users["ben"].id) == 1)
        if shut_out == "account":
            await disabled(world, "ben")
        else:
            with acting_as(world.users["ben"].id):
                [key] = await world.service.accounts.keys()
                await world.service.accounts.revoke(key.id)
            await world.service.runs.stop_all_of(world.users["ben"].id)
        async with asyncio.timeout(60):
            said = await theirs
        assert (said.status_code, said.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "www-authenticate" in said.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_not_stored_ends_with_the_account_too(tmp_path: Path, stream: bool) -> None:
    async with people(with_slow(tmp_path)) as world:
        asked = {
            "model": "slow",
            "stream": stream,
            "messages": [{"role": "user", "content": "!count 100000"}],
        }
        theirs = asyncio.create_task(world.ask("POST", CHAT, as_="ben", json=asked))
        with acting_as(world.users["eve"].id):
            other = await world.service.turn(
                (await world.service.store.create()).id, "!count 100000", model="slow"
            )
        await until(lambda: world.service.runs.count_of(world.users["ben"].id) == 1)
        await disabled(world, "ben")
        async with asyncio.timeout(60):
            said = await theirs
        assert ("interrupted" in said.text) or said.status_code == 401  # if nothing of it was on its way yet
        assert not other.done
        await other.stop()


async def test_an_answer_that_is_not_stored_ends_whose_user_another_process_has_erased(
    tmp_path: Path,
) -> None:
    async with people(with_slow(tmp_path)) as world:
        asked = {"model": "slow", "messages": [{"role": "user", "content": "!count 100000"}]}
        theirs = asyncio.create_task(world.ask("POST", CHAT, as_="ben", json=asked))
        await until(lambda: world.service.runs.count_of(world.users["ben"].id) == 1)
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as elsewhere:
            await elsewhere.belongings.erase(world.users["ben"].id)
        async with asyncio.timeout(60):
            assert (await theirs).status_code == 401
