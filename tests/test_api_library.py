"""What our own conversation routes do: filing, trash, search, copies, links, files; personas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from rallychat.catalog import Sampling
from rallychat.retention import emptying_trash
from rallychat.settings import Settings
from tests.responses_world import ENDLESS, asked, next_run, said_something, text_of, world


async def made(http: httpx.AsyncClient, *texts: str) -> str:
    items = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    for item in items[1::2]:
        item["content"] = [{"type": "output_text", "text": item["content"]}]  # type: ignore[assignment]
    return str((await http.post("/v1/conversations", json={"items": items})).json()["id"])


async def listed(http: httpx.AsyncClient, **filters: Any) -> list[str]:
    return [one["id"] for one in (await http.get("/v1/conversations", params=filters)).json()["data"]]


async def test_a_deleted_conversation_comes_back_from_the_trash_with_everything(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        gone = await made(http, "A walrus", "Yes")
        await http.delete(f"/v1/conversations/{gone}")
        assert (await http.get(f"/v1/conversations/{gone}")).status_code == 404
        assert (await listed(http), await listed(http, deleted=True)) == ([], [gone])
        back = (await http.post(f"/v1/conversations/{gone}/restore")).json()
        assert (back["id"], back["deleted_at"]) == (gone, None)
        assert len((await http.get(f"/v1/conversations/{gone}/items")).json()["data"]) == 2
        await http.delete(f"/v1/conversations/{gone}")
        assert (await http.delete("/v1/conversations/trash")).json()["deleted"] == 1
        assert (await http.post(f"/v1/conversations/{gone}/restore")).status_code == 404
        gone = await made(http, "Out of the trash")
        await http.delete(f"/v1/conversations/{gone}")
        assert (await http.delete(f"/v1/conversations/{gone}")).status_code == 404
        assert (await http.delete(f"/v1/conversations/{gone}", params={"forever": True})).status_code == 200
        assert (await http.post(f"/v1/conversations/{gone}/restore")).status_code == 404
        for_good = await made(http, "Never mind")
        await http.delete(f"/v1/conversations/{for_good}", params={"forever": True})
        assert await listed(http, deleted=True) == []


async def test_conversations_are_renamed_pinned_filed_and_listed_so(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        one, other = await made(http, "One"), await made(http, "Other")
        changes = {"title": "First", "pinned": True, "folder": "Work"}
        changed = (await http.patch(f"/v1/conversations/{one}", json=changes)).json()
        assert {name: changed[name] for name in changes} == changes
        await http.patch(f"/v1/conversations/{other}", json={"archived": True})
        assert await listed(http, pinned=True) == [one]
        assert await listed(http, archived=True) == [other]
        assert await listed(http, folder="Work") == [one]
        assert (await http.get("/v1/conversations/folders")).json()["data"] == ["Work"]
        wrong = await http.patch(f"/v1/conversations/{one}", json={"colour": "red"})
        assert (wrong.status_code, "colour" in wrong.text) == (400, True)


async def test_search_answers_with_the_place_and_a_marked_snippet(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        here = await made(http, "Tell me of birds", "The Arctic tern flies far")
        await made(http, "Something else")
        found = (await http.get("/v1/conversations/search", params={"q": "tern"})).json()
        (hit,) = found["data"]
        assert (hit["conversation_id"], hit["role"], found["has_more"]) == (here, "assistant", False)
        assert [hit["snippet"][start:end] for start, end in hit["marks"]] == ["tern"]


async def test_a_copy_ends_where_it_was_told_to(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        here = await made(http, "one", "two", "three")
        second = (await service.store.path(here))[1].id
        copy = (await http.post(f"/v1/conversations/{here}/fork", json={"message_id": second})).json()["id"]
        assert [row.text for row in await service.store.path(copy)] == ["one", "two"]
        nowhere = await http.post(f"/v1/conversations/{here}/fork", json={"message_id": "msg_nowhere"})
        assert nowhere.status_code == 404


async def test_a_link_is_made_listed_and_revoked_unless_sharing_is_off(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        here = await made(http, "one", "two")
        link = (await http.post(f"/v1/conversations/{here}/shares", json={})).json()
        assert (await service.store.shares.read(link["path"].removeprefix("/share/")))[0].id == here
        assert (await http.get(f"/v1/conversations/{here}/shares")).json()["data"] == [link]
        await http.delete(f"/v1/conversations/{here}/shares/{link['id']}")
        assert (await http.get(f"/v1/conversations/{here}/shares")).json()["data"] == []
        object.__setattr__(service, "settings", Settings(data_dir=tmp_path, sharing=False))
        assert (await http.post(f"/v1/conversations/{here}/shares", json={})).status_code == 403


async def test_what_is_exported_is_imported_elsewhere_and_not_twice(tmp_path: Path) -> None:
    async with world(tmp_path / "a") as (http, _):
        here = await made(http, "one", "two")
        everything = (await http.get("/v1/conversations/export")).content
        alone = (await http.get(f"/v1/conversations/{here}/export")).json()
        text = (await http.get(f"/v1/conversations/{here}/export", params={"format": "markdown"})).text
        assert json.loads(everything)["conversations"] == alone["conversations"]
        assert text.startswith("# one\n\n## You\n\none\n\n## ")
        await http.delete(f"/v1/conversations/{here}", params={"forever": True})
    async with world(tmp_path / "b") as (http, service):
        first = (await http.post("/v1/conversations/import", content=everything)).json()
        again = (await http.post("/v1/conversations/import", content=everything)).json()
        assert (first["imported"], first["messages"], again["imported"], again["already_here"]) == (
            1,
            2,
            0,
            1,
        )
        (copy,) = await service.store.list()
        assert [row.text for row in await service.store.path(copy.id)] == ["one", "two"]
        broken = await http.post("/v1/conversations/import", content=everything[:-30])
        assert (broken.status_code, "not valid JSON" in broken.text) == (400, True)


async def test_an_answer_that_was_cut_off_goes_on_where_it_is_imported(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        chat = (await service.store.create()).id
        await (await service.turn(chat, "!count 9", sampling=Sampling(max_tokens=3))).wait()
        cut = (await service.store.path(chat))[-1]
        exported = (await http.get(f"/v1/conversations/{chat}/export")).content
        await http.delete(f"/v1/conversations/{chat}", params={"forever": True})
        assert (await http.post("/v1/conversations/import", content=exported)).json()["imported"] == 1
        (copy,) = await service.store.list()
        answer = (await service.store.path(copy.id))[-1]
        assert (answer.finish_reason, answer.usage, answer.timings) == ("length", cut.usage, cut.timings)
        await (await service.continue_answer(answer.id)).wait()
        whole = (await service.store.path(copy.id))[-1]
        assert (whole.finish_reason, whole.text.startswith(cut.text)) == ("stop", True)
        assert len(whole.text) > len(cut.text)


async def test_unknown_query_parameters_are_refused_by_name(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        one = f"/v1/conversations/{await made(http, 'One')}"
        own = ("/v1/me", "/v1/me/keys", "/v1/users", "/v1/personas")
        many = ("/v1/conversations/search?q=x", "/v1/conversations/export", "/v1/conversations/folders")
        for path in (*own, *many, f"{one}/export", f"{one}/context", f"{one}/shares"):
            refused = await http.get(f"{path}{'&' if '?' in path else '?'}colour=red")
            error = refused.json()["error"]
            assert (refused.status_code, error["param"], error["code"]) == (
                400,
                "colour",
                "unknown_parameter",
            )


async def test_personas_are_made_changed_and_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        asked = {"name": "Pirate", "system": "Arr.", "sampling": {"temperature": 0.5}}
        persona = (await http.post("/v1/personas", json=asked)).json()
        path = f"/v1/personas/{persona['id']}"
        assert (await http.post(path, json={"system": "Arrr."})).json()["name"] == "Pirate"
        assert (await http.get(path)).json()["system"] == "Arrr."
        assert (await http.get("/v1/personas")).json()["data"][0]["sampling"] == {"temperature": 0.5}
        assert (await http.post("/v1/personas", json={"name": "x", "model": "no-such"})).status_code == 404
        await http.delete(path)
        assert (await http.get(path)).status_code == 404


async def test_an_answer_on_a_branch_ends_with_its_conversation_and_comes_back_with_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as (http, service):
        chat = await made(http, "Terns")
        first = await asked(http, "Hi", conversation=chat)
        growing = next_run(service)
        branch = await asked(
            http, ENDLESS["input"], model="slow", previous_response_id=first["id"], background=True
        )
        await said_something(await growing)
        await http.delete(f"/v1/conversations/{chat}")
        await (await growing).wait()
        assert (await http.get(f"/v1/responses/{branch['id']}")).status_code == 404
        await http.post(f"/v1/conversations/{chat}/restore")
        back = (await http.get(f"/v1/responses/{branch['id']}")).json()
        assert (back["status"], text_of(back)[:1]) == ("cancelled", "1")


async def test_a_chain_of_responses_in_no_conversation_goes_when_nobody_went_on_with_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as (http, service):
        chat = await made(http, "Terns")
        chain, said = await asked(http, "Hi"), await asked(http, "Hi", conversation=chat)
        assert await service.store.library.end_chains(days=1) == 0
        async with emptying_trash(service.store, days=1, response_days=0), asyncio.timeout(60):
            while (await http.get(f"/v1/responses/{chain['id']}")).status_code == 200:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert (await http.get(f"/v1/responses/{chain['id']}")).status_code == 404
        assert (await http.get(f"/v1/responses/{said['id']}")).status_code == 200
        assert await service.store.library.end_chains(days=0) == 0


async def test_a_file_that_is_too_large_to_be_imported_is_refused_as_such(tmp_path: Path) -> None:
    async with world(tmp_path, max_import_bytes=1024) as (http, _):
        answer = await http.post("/v1/conversations/import", content=b"[" + b" " * 2000 + b"]")
        assert answer.status_code == 413
        assert "max_import_bytes" in answer.json()["error"]["message"]
