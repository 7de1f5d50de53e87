"""What the page sends again because no reply came is said once: same conversation, same messages, same run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.errors import StoreUnavailable
from rallychat.identity import acting_as
from rallychat.ui import transcript
from tests.test_ui_routes import events, page


async def send(
    client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None, key: str = "k"
) -> httpx.Response:
    return await client.post(f"/ui{path}", json=body or {}, headers={"Idempotency-Key": key})


async def test_a_first_message_that_is_sent_again_begins_no_second_conversation(tmp_path: Path) -> None:
    body = {"text": "!count 30", "model": "slow", "system": "Be short."}
    async with page(tmp_path) as (client, service):
        first, again = [await send(client, "/turns", body) for _ in range(2)]
        said, found = first.json(), again.json()
        assert (found["conversation"], found["run"]) == (said["conversation"], said["run"])
        assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (
            False,
            "true",
        )
        one, two = await asyncio.gather(*(events(client, run) for run in (said["run"], found["run"])))
        assert one[-1] == two[-1]
        assert [row.id for row in await service.store.list()] == [said["conversation"]]
        assert len(await service.store.path(said["conversation"])) == 2


async def test_whoever_sends_it_again_amid_the_first_try_waits_and_is_told_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with page(tmp_path) as (client, service):
        begin, storing, stored = service.store.answers.begin, asyncio.Event(), asyncio.Event()

        async def slowly(*args: Any, **how: Any) -> Any:
            storing.set()
            await stored.wait()
            return await begin(*args, **how)

        monkeypatch.setattr(service.store.answers, "begin", slowly)
        first = asyncio.create_task(send(client, "/turns", {"text": "Hi"}))
        await storing.wait()
        again = asyncio.create_task(send(client, "/turns", {"text": "Hi"}))
        await asyncio.wait([again], timeout=0.1)
        stored.set()
        one, two = (await first).json(), (await again).json()
        assert one["conversation"] == two["conversation"]
        assert len(await service.store.list()) == 1


async def test_an_answer_made_again_an_edit_and_a_continuation_happen_once(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = (await send(client, "/turns", {"text": "!count 30", "sampling": {"max_tokens": 8}})).json()
        first = service.runs.get(said["run"])
        await first.wait()
        asked = {
            f"/messages/{first.message_id}/continue": {},
            f"/messages/{first.message_id}/regenerate": {},
            f"/messages/{first.user_message_id}/edit": {"text": "Hi"},
        }
        for path, body in asked.items():
            one = await send(client, path, body, key=path[-6:])
            await service.runs.get(one.json()["run"]).wait()
            two = await send(client, path, body, key=path[-6:])
            assert (one.status_code, two.status_code) == (200, 200), two.text
            assert (two.json()["conversation"], two.json()["run"]) == (said["conversation"], None)
        assert len(await service.store.siblings(first.message_id)) == 2
        assert len(await service.store.siblings(first.user_message_id or "")) == 2


async def test_the_same_key_of_somebody_else_is_another_one(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        made = []
        for person in ("ben", "eve", "ben"):
            with acting_as(person):
                made.append((await send(client, "/turns", {"text": "Hi"})).json()["conversation"])
        assert made[0] == made[2] != made[1]
        with acting_as("eve"):
            assert [row.id for row in await service.store.list()] == [made[1]]


async def test_another_text_needs_another_key(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        await send(client, "/turns", {"text": "Hi"})
        refused = await send(client, "/turns", {"text": "Hello"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        broken = await send(client, "/turns", {"text": "Hello"}, key="a b")
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_request")
        assert len(await service.store.list()) == 1


async def test_what_was_refused_may_be_sent_again(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        service.runs.stopping = True
        assert (await send(client, "/turns", {"text": "Hi"})).status_code == 503
        service.runs.stopping = False
        again = await send(client, "/turns", {"text": "Hi"})
        assert (again.status_code, again.headers.get("idempotent-replayed")) == (200, None)


async def test_what_was_said_but_could_not_be_shown_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(*_: Any) -> Any:
        raise StoreUnavailable("The database is busy.")

    async with page(tmp_path) as (client, service):
        with monkeypatch.context() as patched:
            patched.setattr(transcript, "since", busy)
            assert (await send(client, "/turns", {"text": "Hi"})).status_code == 503
        again = await send(client, "/turns", {"text": "Hi"})
        (only,) = await service.store.list()
        assert (again.status_code, again.json()["conversation"]) == (200, only.id)


async def test_what_is_stored_while_its_request_is_cut_off_is_not_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with page(tmp_path) as (client, service):
        begin, storing, cut_off = service.store.answers._begin, asyncio.Event(), asyncio.Event()

        async def slowly(*args: Any, **how: Any) -> Any:
            storing.set()
            await cut_off.wait()
            return await begin(*args, **how)

        monkeypatch.setattr(service.store.answers, "_begin", slowly)
        first = asyncio.create_task(send(client, "/turns", {"text": "Hi"}))
        await storing.wait()
        first.cancel()
        cut_off.set()
        await asyncio.wait([first])
        again = await send(client, "/turns", {"text": "Hi"})
        (only,) = await service.store.list()
        assert (first.cancelled(), again.json()["conversation"]) == (True, only.id)
        assert [row.role for row in await service.store.path(only.id)] == ["user", "assistant"]


async def test_it_is_found_after_a_restart_and_not_said_again_once_it_was_deleted(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = (await send(client, "/turns", {"text": "Hi"})).json()
        await service.runs.get(said["run"]).wait()
    async with page(tmp_path) as (client, service):
        again = (await send(client, "/turns", {"text": "Hi"})).json()
        assert (again["conversation"], again["run"]) == (said["conversation"], None)
        await service.delete(said["conversation"])
        gone = await send(client, "/turns", {"text": "Hi"})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
        assert await service.store.list() == []
