"""Idempotency keys: one request, one run, one answer, however often it is sent."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from rallychat.api.app import ROUTERS
from rallychat.api.idempotency import takes_key
from rallychat.store import ConversationStore, Memory, idempotency
from tests.api_world import chat
from tests.responses_world import ENDLESS, events_of, items, next_run, said_something, text_of, told, world

CREATING: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Hi"},
    "/v1/responses ": {"input": "Hi", "store": False},
    "/v1/responses  ": {"input": "Hi", "stream": True},
    "/v1/responses   ": {"input": "Hi", "stream": True, "store": False},
    "/v1/chat/completions": chat(),
    "/v1/chat/completions ": chat(stream=True),
    "/v1/completions": {"prompt": "Hi"},
    "/v1/conversations": {"metadata": {"a": "b"}},
}

_ONE = "/v1/conversations/{conversation_id}"
TAKING = {
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/conversations",
    "/v1/conversations/import",
    *(f"{_ONE}/{what}" for what in ("items", "fork", "shares", "memory", "memory/undo", "memory/restore")),
    "/v1/personas",
    "/v1/files",
    "/v1/batches",
}
TOLD_ONCE = {"/v1/users", "/v1/invites", "/v1/users/{user_id}/keys", "/v1/me/keys"}
"""What these tell, or are told, is kept nowhere."""


async def post(http: httpx.AsyncClient, path: str, body: dict[str, Any], key: str = "k") -> httpx.Response:
    return await http.post(path.strip(), json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("path", CREATING)
async def test_the_same_request_gets_the_same_answer_after_a_restart_too(tmp_path: Path, path: str) -> None:
    body = CREATING[path]
    async with world(tmp_path) as (http, service):
        first = await post(http, path, body)
        again = await post(http, path, dict(reversed(body.items())))
        other = await post(http, path, body, key="k2")
        count = len(await service.store.list())
    async with world(tmp_path) as (http, _):
        later = await post(http, path, body)
    assert first.status_code == 200, first.text
    assert (first.text, "idempotent-replayed" in first.headers) == (again.text, False) == (later.text, False)
    assert again.headers["idempotent-replayed"] == later.headers["idempotent-replayed"] == "true"
    assert first.headers["content-type"] == again.headers["content-type"] == later.headers["content-type"]
    assert other.text != first.text or path == "/v1/completions"
    assert count == (2 if path == "/v1/conversations" else 0)


async def test_another_request_with_the_key_of_one_that_is_being_answered_is_refused_at_once(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as (http, service):
        run = next_run(service)
        first = asyncio.create_task(post(http, "/v1/responses", ENDLESS | {"store": False}))
        await run
        other = await post(http, "/v1/responses", {"input": "Hi"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert not first.done()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_copies_links_and_personas_are_made_once(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (
            await http.post("/v1/conversations", json={"items": [{"role": "user", "content": "x"}]})
        ).json()
        (said,) = await service.store.path(made["id"])
        creating = {
            "/v1/personas": {"name": "Sailor"},
            f"/v1/conversations/{made['id']}/fork": {"message_id": said.id},
            f"/v1/conversations/{made['id']}/shares": {},
        }
        for path, body in creating.items():
            first, again = [await post(http, path, body, key=path[-6:]) for _ in range(2)]
            assert (first.status_code, first.text) == (again.status_code, again.text) == (200, first.text)
            assert again.headers["idempotent-replayed"] == "true"
        found = (
            await service.store.personas.list(),
            await service.store.list(),
            await service.store.shares.list(),
        )
    assert [len(each) for each in found] == [1, 2, 1]


async def test_an_import_and_what_is_remembered_are_done_once(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = await service.store.create(title="An island")
        run = await service.turn(made.id, "Hello")
        await run.wait()
        await service.store.contexts.remember(made.id, Memory("facts", "one", run.message_id))
        exported = (await http.get("/v1/conversations/export")).json()
        memory = f"/v1/conversations/{made.id}/memory"
        doing: dict[str, Any] = {
            "/v1/conversations/import": exported,
            memory: {"text": "two", "version": 1},
            f"{memory}/undo?version=2": {},
            f"{memory}/restore": {"version": 2},
        }
        for path, body in doing.items():
            first, again = [await post(http, path, body, key=path[-6:]) for _ in range(2)]
            assert (first.status_code, first.text) == (again.status_code, again.text) == (200, first.text)
            assert again.headers["idempotent-replayed"] == "true"
            other = await post(http, path, {**body, "else": 1}, key=path[-6:])
            assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
        other = await post(http, f"{memory}/undo?version=3", {}, key="sion=2")
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_every_post_takes_a_key_or_refuses_it_by_name(tmp_path: Path) -> None:
    taken, refused = set(), set()
    async with world(tmp_path) as (http, _):
        for route in (route for router in ROUTERS for route in router.routes):
            if not isinstance(route, APIRoute) or "POST" not in (route.methods or ()):
                continue
            answer = await post(http, re.sub("{.*?}", "none", route.path), {})
            if takes_key(route):
                taken.add(route.path)
                assert "idempotency-key" not in answer.text, route.path
            else:
                refused.add(route.path)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency-key")
    assert taken == TAKING
    assert refused >= TOLD_ONCE


async def test_a_body_that_is_nested_too_deeply_is_refused_as_it_is_without_a_key(tmp_path: Path) -> None:
    body = b'{"input": "Hi", "metadata": ' + b"[" * 300 + b"]" * 300 + b"}"
    kind = {"content-type": "application/json"}
    async with world(tmp_path) as (http, _):
        without = await http.post("/v1/responses", content=body, headers=kind)
        keyed = await http.post("/v1/responses", content=body, headers=kind | {"Idempotency-Key": "k"})
    assert (keyed.status_code, keyed.json()) == (without.status_code, without.json())
    assert (keyed.status_code, keyed.json()["error"]["param"]) == (400, "metadata")


async def test_items_are_put_in_once(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        body = {"items": [{"role": "user", "content": "x"}]}
        answers = await asyncio.gather(
            *(post(http, f"/v1/conversations/{made}/items", body) for _ in range(4))
        )
        assert len({answer.text for answer in answers}) == 1
        assert await items(http, made) == ["x"]


async def test_while_a_response_is_made_whoever_repeats_its_request_watches_it(tmp_path: Path) -> None:
    body = {"input": "!count 40", "model": "slow", "stream": True}
    async with world(tmp_path) as (http, service):
        begun = next_run(service)
        first = asyncio.create_task(post(http, "/v1/responses", body))
        await said_something(await begun)
        again = asyncio.create_task(post(http, "/v1/responses", body))
        one, two = await asyncio.gather(first, again)
        assert events_of(one.text) == events_of(two.text)
        assert len(service.runs._runs) == 1


async def test_a_request_whose_client_hung_up_is_not_run_again(tmp_path: Path) -> None:
    body = {"input": "!count 40", "model": "slow"}
    async with world(tmp_path) as (http, service):
        begun = next_run(service)
        first = asyncio.create_task(post(http, "/v1/responses", body))
        run = await begun
        await said_something(run)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = (await post(http, "/v1/responses", body)).json()
    assert again["id"] == run.message_id.replace("msg_", "resp_")
    assert text_of(again) == " ".join(map(str, range(1, 41)))


async def test_an_unstored_answer_is_made_once_for_all_who_ask_meanwhile(tmp_path: Path) -> None:
    body = chat("!count 30", model="slow", stream=True)
    async with world(tmp_path) as (http, service):
        begun = next_run(service)
        first = asyncio.create_task(post(http, "/v1/chat/completions", body))
        await begun
        others = [asyncio.create_task(post(http, "/v1/chat/completions", body)) for _ in range(3)]
        answers = [await first, *[await other for other in others]]
    assert len({answer.text for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true", "true"]


async def test_when_the_first_of_an_unstored_answer_hangs_up_the_next_one_asks_anew(tmp_path: Path) -> None:
    body = chat("!count 30", model="slow")
    async with world(tmp_path) as (http, service):
        begun = next_run(service)
        first = asyncio.create_task(post(http, "/v1/chat/completions", body))
        await begun
        second = asyncio.create_task(post(http, "/v1/chat/completions", body))
        await asyncio.sleep(0)
        first.cancel()
        answer = await second
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers


async def test_another_request_with_the_same_key_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        await post(http, "/v1/responses", {"input": "One"})
        for path, body in (
            ("/v1/responses", {"input": "Two"}),
            ("/v1/conversations", {"metadata": {"a": "b"}}),
        ):
            refused = await post(http, path, body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
            assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/v1/responses", {"input": "word " * 9000}),
        ("/v1/responses", {"input": "word " * 9000, "stream": True}),
        ("/v1/responses", {"input": 5}),
        ("/v1/chat/completions", chat(n=2)),
        ("/v1/chat/completions", chat("!fail 0")),
        ("/v1/chat/completions", chat("!fail 3", stream=True)),
        ("/v1/conversations", {"metadata": 5}),
    ],
)
async def test_after_an_error_the_key_is_free_again(tmp_path: Path, path: str, wrong: dict[str, Any]) -> None:
    async with world(tmp_path) as (http, _):
        await post(http, "/v1/completions", {"prompt": "Hi"}, key="first")
        await post(http, path, wrong)
        right = await post(http, path, CREATING[path])
    assert right.status_code == 200, right.text
    assert "idempotent-replayed" not in right.headers


async def test_a_body_that_cannot_be_read_is_refused_as_without_a_key(tmp_path: Path) -> None:
    async with world(tmp_path, max_body_bytes=1024) as (http, _):
        large = await post(http, "/v1/responses", {"input": "x" * 2000})
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        broken = await http.post("/v1/responses", content=b"{", headers=headers)
        typed = await http.post(
            "/v1/responses", content=b"{}", headers=headers | {"Content-Type": "text/plain"}
        )
        assert [r.status_code for r in (large, broken, typed)] == [413, 400, 415]
        assert (await post(http, "/v1/responses", {"input": "Hi"})).status_code == 200


async def test_a_deleted_response_is_not_made_again(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await post(http, "/v1/responses", {"input": "Hi"})).json()
        await http.delete(f"/v1/responses/{made['id']}")
        assert (await post(http, "/v1/responses", {"input": "Hi"})).json()["error"][
            "code"
        ] == "response_not_found"


async def test_a_key_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as (http, _):
        first = (await post(http, "/v1/responses", {"input": "Hi"})).json()["id"]
        monkeypatch.setattr(idempotency, "LIFETIME", timedelta(0))
        second = (await post(http, "/v1/responses", {"input": "Other"})).json()["id"]
    assert first != second


async def test_keys_are_bounded_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MOST", 100)
    async with world(tmp_path) as (_, service):
        keys = service.store.keys
        for n in range(100):
            assert await keys.claim(f"k{n}", "f") is None
            await keys.answer(f"k{n}", status=200, media_type="text/plain", body=b"x")
        assert await keys.claim("one more", "f") is None
        assert await keys.claim("k1", "f") is not None
        assert await keys.claim("k0", "f") is None


async def test_an_answer_too_long_to_be_kept_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "LONGEST", 10)
    async with world(tmp_path) as (http, _):
        await post(http, "/v1/chat/completions", chat())
        refused = await post(http, "/v1/chat/completions", chat())
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("key", ["", "a b", "k" * 256])
async def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path, key: str) -> None:
    async with world(tmp_path) as (http, _):
        refused = await post(http, "/v1/responses", {"input": "Hi"}, key=key)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "idempotency-key")


async def test_a_key_of_a_live_process_is_in_use_and_of_a_dead_one_is_free(tmp_path: Path) -> None:
    body = {"input": "Hi"}
    async with world(tmp_path) as (http, service):
        await post(http, "/v1/responses", body)
        claim = await service.store.keys.claim("k", "?")
        assert claim is not None
        async with ConversationStore.open(service.settings) as other:
            assert await other.keys.claim("theirs", claim.fingerprint) is None
            refused = await post(http, "/v1/responses", body, key="theirs")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert (await post(http, "/v1/responses", body, key="theirs")).status_code == 200


async def test_a_repeated_background_request_tells_how_far_its_response_is(tmp_path: Path) -> None:
    body = {"input": "Hi", "background": True}
    async with world(tmp_path) as (http, _):
        first = (await post(http, "/v1/responses", body)).json()
        await told(http, first["id"])
        again = (await post(http, "/v1/responses", body)).json()
    assert first["status"] in ("queued", "in_progress")  # it may have begun already
    assert (again["status"], again["id"]) == ("completed", first["id"])


async def test_whoever_repeats_a_request_while_it_is_undone_is_never_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = "word " * 9000
    body = {"input": too_long, "stream": True}
    async with world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        body["conversation"] = conversation
        await post(http, "/v1/responses", {"input": "One", "conversation": conversation}, key="before")
        undo, undoing = service.store.responses.delete, asyncio.Event()
        repeated: list[asyncio.Task[httpx.Response]] = []

        async def slowly(response: str, *, undo_: Any = undo, **how: Any) -> None:
            if not undoing.is_set():
                undoing.set()
                repeated.append(asyncio.create_task(post(http, "/v1/responses", body)))
                await asyncio.wait(repeated, timeout=1)
            await undo_(response, **how)

        monkeypatch.setattr(service.store.responses, "delete", slowly)
        first = await post(http, "/v1/responses", body)
        second = await repeated[0]
        said = await items(http, conversation)
    assert first.status_code == 400
    told_of = [answer for answer in (first, second) if answer.status_code == 200]
    assert said[2:] == [too_long] * len(told_of)
