"""/v1/conversations over the echo engine: what they hold, page by page, and what taking something out leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.api.responses.pages import page
from rallychat.errors import NotFound, StoreUnavailable
from rallychat.store import codec
from tests.responses_world import asked, items, told, world

THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}
SAID = {
    "role": "assistant",
    "content": [{"type": "output_text", "text": "A"}, {"type": "output_text", "text": "B"}],
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@given(st.integers(0, 12), st.integers(1, 5), st.sampled_from(["asc", "desc"]))
def test_pages_hold_every_item_once_and_in_order(count: int, limit: int, order: str) -> None:
    everything = [{"id": f"msg_{n}"} for n in range(count)]
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        got = page(everything, after=after, limit=limit, order=order)
        found += got["data"]
        assert len(got["data"]) <= limit
        assert (got["first_id"], got["last_id"]) == (
            (got["data"][0]["id"], got["data"][-1]["id"]) if got["data"] else ("", "")
        )
        if not got["has_more"]:
            break
        after = got["last_id"]
    assert found == (everything if order == "asc" else everything[::-1])
    with pytest.raises(NotFound):
        page(everything, after="msg_x", limit=limit, order=order)


async def test_a_conversation_is_that_of_the_page(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (await http.post("/v1/conversations", json={"items": [user("Hello")]})).json()
        assert [(c.id, c.title) for c in await service.store.list()] == [(made["id"], "Hello")]
        run = await service.turn(made["id"], "From the page")
        await run.wait()
        assert await items(http, made["id"]) == ["Hello", "From the page", "From the page"]
        listed = (await http.get("/v1/conversations")).json()
    assert [c["title"] for c in listed["data"]] == ["Hello"]


async def test_a_failure_leaves_no_conversation_without_its_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> NoReturn:
        raise StoreUnavailable("The database is gone.")

    async with world(tmp_path) as (http, service):
        with monkeypatch.context() as broken:
            broken.setattr(codec, "parts_checked", fails)
            broken.setattr(service.store, "delete", fails)
            made = await http.post("/v1/conversations", json={"items": [user("Hello")]})
        assert (made.status_code, await service.store.list()) == (503, [])


async def test_the_first_items_give_an_empty_conversation_its_title(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        for said in ("Hello", "And more"):
            await http.post(f"/v1/conversations/{made}/items", json={"items": [user(said)]})
        assert (await service.store.get(made)).title == "Hello"


async def test_conversations_are_listed_page_by_page(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = [(await http.post("/v1/conversations", json={})).json()["id"] for _ in range(3)]
        first = (await http.get("/v1/conversations?limit=2")).json()
        rest = (await http.get(f"/v1/conversations?limit=2&after={first['last_id']}")).json()
    assert [c["id"] for c in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_one_answer_is_several_items_each_with_a_name_that_finds_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/conversations", json={"items": [user("Q"), THOUGHT, SAID]})).json()
        path = f"/v1/conversations/{made['id']}/items"
        listed = (await http.get(path, params={"order": "asc"})).json()["data"]
        assert [item["id"][:3] for item in listed] == ["msg", "rs_", "msg"]
        assert [part["text"] for part in listed[2]["content"]] == ["A", "B"]
        for item in listed:
            assert (await http.get(f"{path}/{item['id']}")).json() == item
        for unknown in ("msg_1", "rs_1", f"{listed[2]['id']}_2", listed[0]["id"].replace("msg", "rs"), "x"):
            missing = await http.get(f"{path}/{unknown}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "item_not_found"), unknown
            assert (await http.delete(f"{path}/{unknown}")).status_code == 404
        other = (await http.post("/v1/conversations", json={})).json()["id"]
        assert (await http.get(f"/v1/conversations/{other}/items/{listed[0]['id']}")).status_code == 404


async def test_taking_an_item_out_leaves_what_followed_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        body = {"items": [user("1"), THOUGHT, SAID, user("3"), {"role": "assistant", "content": "4"}]}
        made = (await http.post("/v1/conversations", json=body)).json()["id"]
        path = f"/v1/conversations/{made}/items"
        ids = [item["id"] for item in (await http.get(path, params={"order": "asc"})).json()["data"]]
        assert await items(http, made) == ["1", "Hm", "AB", "3", "4"]
        for gone, left in (
            (ids[1], ["1", "AB", "3", "4"]),
            (ids[2], ["1", "3", "4"]),
            (ids[4], ["1", "3"]),
            (ids[0], ["3"]),
            (ids[3], []),
        ):
            assert (await http.delete(f"{path}/{gone}")).json()["id"] == made
            assert await items(http, made) == left
            tip = (await service.store.get(made)).tip_id
            assert (tip is None) == (left == [])
        await asked(http, "Anew", conversation=made)
        assert await items(http, made) == ["Anew", "Anew"]


async def test_of_two_who_take_out_the_same_item_one_finds_it_gone(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/conversations", json={"items": [user("Q"), THOUGHT, SAID]})).json()["id"]
        path = f"/v1/conversations/{made}/items"
        thought = (await http.get(path, params={"order": "asc"})).json()["data"][1]["id"]
        both = await asyncio.gather(*(http.delete(f"{path}/{thought}") for _ in range(2)))
        assert sorted(done.status_code for done in both) == [200, 404]
        assert await items(http, made) == ["Q", "AB"]


async def test_taking_one_item_out_renames_no_other_of_its_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        thoughts = "!say <think>1</think>2<think>3</think>4<think>5</think>6"
        response = await asked(http, thoughts, model="thinking", conversation=made)
        path = f"/v1/conversations/{made}/items"
        left = [item["id"] for item in response["output"]]
        assert len(left) == 6
        for at in (2, 0, 1, 2, 0):  # amid, at the beginning, at the end
            gone = left.pop(at)
            assert (await http.delete(f"{path}/{gone}")).status_code == 200
            assert (await http.delete(f"{path}/{gone}")).status_code == 404
            assert (await http.get(f"{path}/{gone}")).status_code == 404
            listed = (await http.get(path, params={"order": "asc"})).json()["data"]
            now = (await http.get(f"/v1/responses/{response['id']}")).json()
            assert [item["id"] for item in listed[1:]] == [item["id"] for item in now["output"]] == left
            done = [
                event["item"]["id"]
                for event in await told(http, response["id"])
                if event["type"] == "response.output_item.done"
            ]
            assert done == left


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_list_goes_on_where_an_item_stood_that_was_taken_out_since(
    tmp_path: Path, order: str
) -> None:
    async with world(tmp_path) as (http, _):
        body = {"items": [user("1"), THOUGHT, SAID, user("2"), user("3"), THOUGHT, SAID]}
        made = (await http.post("/v1/conversations", json=body)).json()["id"]
        path, seen = f"/v1/conversations/{made}/items", 0
        query: dict[str, Any] = {"order": order, "limit": 2}
        while True:
            got = (await http.get(path, params=query)).json()
            for item in got["data"]:
                assert (await http.delete(f"{path}/{item['id']}")).status_code == 200
            seen += len(got["data"])
            if not got["has_more"]:
                break
            query["after"] = got["last_id"]
        assert (seen, await items(http, made)) == (7, [])


async def test_an_empty_text_of_a_client_is_an_item_as_any_other(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        silent = {"role": "assistant", "content": ""}
        body = {"items": [user("Q"), THOUGHT, silent, user(""), silent]}
        made = (await http.post("/v1/conversations", json=body)).json()["id"]
        path = f"/v1/conversations/{made}/items"
        assert await items(http, made) == ["Q", "Hm", "", "", ""]
        for item in (await http.get(path, params={"order": "asc"})).json()["data"]:
            assert (await http.delete(f"{path}/{item['id']}")).status_code == 200
        assert await items(http, made) == []


async def test_an_item_of_the_middle_is_not_in_the_next_prompt(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        for text in ("One", "Two"):
            await asked(http, text, conversation=made)
        listed = (await http.get(f"/v1/conversations/{made}/items?order=asc")).json()["data"]
        for item in listed[:2]:
            await http.delete(f"/v1/conversations/{made}/items/{item['id']}")
        last = await asked(http, "Three", conversation=made)
        report = (await service.store.responses.get(last["id"])).answer.report
    assert report is not None
    assert listed[0]["id"] not in report.kept
    assert listed[2]["id"] in report.kept


async def test_a_conversation_that_answers_takes_no_items(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/conversations", json={})).json()["id"]
        running = await asked(http, "!count 5000", model="slow", conversation=made, background=True)
        path = f"/v1/conversations/{made}/items"
        refused = await http.post(path, json={"items": [user("x")]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        answer = running["id"].replace("resp_", "msg_")
        listed = (await http.get(path)).json()["data"]
        if listed[0]["id"] == answer:
            assert (await http.delete(f"{path}/{answer}")).status_code == 409
        await http.post(f"/v1/responses/{running['id']}/cancel")
        assert (await http.post(path, json={"items": [user("x")]})).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [user("x")] * 21}, "items"),
        ({"items": [THOUGHT]}, "items"),
        ({"items": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "items[0]"),
        ({"items": [user("a\0b")]}, "content"),
        ({"metadata": {"k": "a\0b"}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"title": "x"}, "title"),
    ],
)
async def test_what_cannot_be_kept_is_refused_and_leaves_nothing(
    tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    async with world(tmp_path) as (http, service):
        refused = await http.post("/v1/conversations", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert await service.store.list() == []


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "", {"metadata": {}}),
            ("GET", "/items", None),
            ("POST", "/items", {"items": [user("x")]}),
            ("GET", "/items/msg_1", None),
            ("DELETE", "/items/msg_1", None),
        ):
            for name in ("conv_1", "msg_1", "x" * 300):
                found = await http.request(method, f"/v1/conversations/{name}{path}", json=body)
                assert (found.status_code, found.json()["error"]["code"]) == (404, "conversation_not_found")
        missing = await http.post("/v1/responses", json={"input": "x", "conversation": "conv_1"})
        assert missing.json()["error"]["code"] == "conversation_not_found"
        missing = await http.post("/v1/responses", json={"input": "x", "previous_response_id": "resp_1"})
        assert missing.json()["error"]["code"] == "response_not_found"
