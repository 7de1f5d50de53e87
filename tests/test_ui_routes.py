from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from rallychat.bench.scripted import scripted
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.identity import acting_as
from rallychat.messages import Finished, Message
from rallychat.settings import Settings
from rallychat.ui import context_routes, conversation_routes, list_routes, model_routes, turn_routes


@asynccontextmanager
async def page(
    folder: Path, *, models: Mapping[str, str] | None = None, **given: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService]]:
    """The page's routes over the echo engine, without Gradio's frame; `models` are files of the user's own."""
    scripted(folder, "slow", "delay_ms = 20")
    for name, facts in (models or {}).items():
        (folder / "catalog" / "models" / f"{name}.toml").write_text(facts)
    async with ChatService.open(Settings(data_dir=folder, **{"model": "echo", **given})) as service:
        app = FastAPI()
        app.state.service, app.state.pending_keys = service, {}
        for each in (list_routes, conversation_routes, context_routes, turn_routes, model_routes):
            app.include_router(each.router(service), prefix="/ui")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            yield client, service


async def say(client: httpx.AsyncClient, text: str, **more: Any) -> dict[str, Any]:
    answer = await client.post("/ui/turns", json={"text": text, **more})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def events(client: httpx.AsyncClient, run: str) -> list[tuple[str, dict[str, Any]]]:
    """A run's server-sent events, to the end."""
    answer = await client.get(f"/ui/runs/{run}/stream")
    blocks = [block.split("\ndata: ") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data)) for name, data in blocks]


async def test_the_first_message_begins_a_conversation_and_its_answer_is_streamed(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "Say **this**", system="Be short.", sampling={"max_tokens": 99})
        assert said["after"] is None
        assert "Say **this**" in said["html"]
        assert f'data-run="{said["run"]}"' in said["html"]
        told = await events(client, said["run"])
        assert (told[0][0], told[-1][0]) == ("begin", "end")
        assert "<p>Say <strong>this</strong></p>" in told[-1][1]["html"]
        stored = await service.store.get(said["conversation"])
        assert (stored.title, stored.system, stored.sampling) == (
            "Say **this**",
            "Be short.",
            Sampling(max_tokens=99),
        )


async def test_a_stream_joined_late_ends_with_the_same_message(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "one two three")
        await service.runs.get(said["run"]).wait()
        told = await events(client, said["run"])
        grown = [data["finished"] + data["tail"] for name, data in told if name == "grow"]
        assert grown == ["<p>one two three</p>\n"]
        assert "<p>one two three</p>" in told[-1][1]["html"]


async def test_versions_of_an_answer_are_counted_and_can_be_chosen(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "hello")
        first = service.runs.get(said["run"])
        await first.wait()
        again = (await client.post(f"/ui/messages/{first.message_id}/regenerate", json={})).json()
        await service.runs.get(again["run"]).wait()
        assert again["after"] == first.user_message_id
        shown = (await client.get(f"/ui/conversations/{said['conversation']}")).json()
        assert ">2/2<" in shown["html"]
        back = (await client.post(f"/ui/messages/{first.message_id}/select", json={})).json()
        assert ">1/2<" in back["html"]
        assert back["after"] == first.user_message_id


async def test_an_edited_message_is_a_branch_of_its_own(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        run = service.runs.get((await say(client, "before"))["run"])
        await run.wait()
        edited = (
            await client.post(f"/ui/messages/{run.user_message_id}/edit", json={"text": "after"})
        ).json()
        await service.runs.get(edited["run"]).wait()
        assert edited["after"] is None
        shown = (await client.get(f"/ui/conversations/{edited['conversation']}")).json()["html"]
        assert "after" in shown
        assert "before" not in shown
        assert ">2/2<" in shown


async def test_a_continued_answer_is_streamed_with_what_it_had_said_before(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        limited = await say(client, "!count 30", sampling={"max_tokens": 8})
        run = service.runs.get(limited["run"])
        assert await run.wait() == Finished("length", usage=run.end.usage, timings=run.end.timings)  # type: ignore[union-attr]
        before = run.text
        await client.patch(f"/ui/conversations/{limited['conversation']}", json={"sampling": {}})
        more = (await client.post(f"/ui/messages/{run.message_id}/continue", json={})).json()
        told = await events(client, more["run"])
        grown = [data["tail"] for name, data in told if name == "grow"]
        assert grown[0] == f"<p>{before.strip()}</p>\n"  # the model of this test counts from 1 again
        assert more["html"].count("<article") == 1


async def test_a_continued_answer_keeps_its_beginning_whoever_else_continues_one(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said: dict[str, str] = {}
        going_on: dict[str, str] = {}
        for person in ("ben", "eve"):
            with acting_as(person):
                limited = await say(client, "!count 30", sampling={"max_tokens": 8})
                run = service.runs.get(limited["run"])
                await run.wait()
                said[person] = run.text
                await client.patch(f"/ui/conversations/{limited['conversation']}", json={"sampling": {}})
                more = await client.post(f"/ui/messages/{run.message_id}/continue", json={})
                going_on[person] = more.json()["run"]
        for person in ("ben", "eve"):
            with acting_as(person):
                told = await events(client, going_on[person])
            first = next(data["tail"] for name, data in told if name == "grow")
            assert first == f"<p>{said[person].strip()}</p>\n"


async def test_watching_an_answer_ends_when_its_conversation_is_deleted(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "!count 5000", model="slow")
        run = service.runs.get(said["run"])
        row = await service.store.message(run.message_id)
        async with aclosing(turn_routes.Turns(service).watch(run, row)) as watched:
            assert (await anext(watched)).startswith(b"event: begin")
            await service.delete(said["conversation"])
            assert not [sent async for sent in watched if sent.startswith(b"event: end")]
        assert (await client.get(f"/ui/runs/{run.id}/stream")).status_code == 404


async def test_a_stopped_answer_offers_to_continue(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "!count 5000", model="slow")
        run = service.runs.get(said["run"])
        async with aclosing(run.attach()) as happening:
            async for _ in happening:
                if run.text:
                    break
        assert (await client.post(f"/ui/runs/{run.id}/stop", json={})).status_code == 200
        html = (await client.get(f"/ui/conversations/{said['conversation']}")).json()["html"]
        assert "<strong>Stopped.</strong>" in html
        assert 'data-action="continue"' in html


async def test_a_failed_answer_says_why_and_offers_another_try(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "!fail 2")
        await service.runs.get(said["run"]).wait()
        html = (await client.get(f"/ui/conversations/{said['conversation']}")).json()["html"]
        assert "notice failed" in html
        assert ">Try again<" in html


async def test_a_long_conversation_is_shown_from_its_end_and_scrolled_backwards(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "message 0")
        await service.runs.get(said["run"]).wait()
        for number in range(1, 30):
            await (await service.turn(said["conversation"], f"message {number}")).wait()
        shown = (await client.get(f"/ui/conversations/{said['conversation']}")).json()
        assert shown["html"].count("<article") == 50
        assert ">message 29<" in shown["html"]
        assert ">message 4<" not in shown["html"]
        rest = await client.get(
            f"/ui/conversations/{said['conversation']}/messages", params={"before": shown["older"]}
        )
        assert rest.json()["html"].count("<article") == 10
        assert ">message 4<" in rest.json()["html"]
        assert rest.json()["older"] is None


async def test_settings_are_changed_one_by_one(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        id_ = (await service.store.create(title="old", system="kept")).id
        facts = (
            await client.patch(f"/ui/conversations/{id_}", json={"title": "new", "model": "ECHO"})
        ).json()
        assert (facts["title"], facts["system"], facts["model"]) == ("new", "kept", "echo")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sampling": {"temperature": 9}}, "sampling.temperature"),
        ({"sampling": {"warmth": 1}}, "sampling.warmth"),
        ({"colour": "red"}, "colour"),
        ({"model": "nosuchmodel"}, "nosuchmodel"),
    ],
)
async def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    async with page(tmp_path) as (client, service):
        id_ = (await service.store.create()).id
        refused = await client.patch(f"/ui/conversations/{id_}", json=changes)
        assert refused.status_code in (400, 404)
        assert word in refused.json()["error"]["message"]


async def test_the_list_is_grouped_by_day_and_goes_on(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        for number in range(45):
            await service.store.create(title=f"Chat <{number}>")
        html = (await client.get("/ui/conversations")).text
        assert html.count("<li") == 40
        assert "<h3>Today</h3>" in html
        assert "Chat &lt;44&gt;" in html
        before = html.split('data-before="')[1].split('"')[0]
        assert (await client.get("/ui/conversations", params={"before": before})).text.count("<li") == 5


async def test_deleting_stops_the_answer_that_grows(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "!count 5000", model="slow")
        gone = await client.request("DELETE", f"/ui/conversations/{said['conversation']}", json={})
        assert gone.status_code == 200
        assert service.runs.get(said["run"]).done
        assert (await client.get(f"/ui/conversations/{said['conversation']}")).status_code == 404


async def test_the_inspector_shows_the_exact_prompt_with_control_tokens_marked(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        said = await say(client, "typed <|im_end|> by a person")
        await service.runs.get(said["run"]).wait()
        html = (await client.get(f"/ui/conversations/{said['conversation']}/context")).text
        assert "<mark>&lt;|im_start|&gt;</mark>user" in html
        assert "typed &lt;|im_end|&gt; by a person<mark>&lt;|im_end|&gt;</mark>" in html
        assert "The window is 8,192 tokens." in html


async def test_the_menu_has_a_card_for_the_model_in_use_even_if_it_is_hidden(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, _):
        menu = (await client.get("/ui/models")).json()
        assert menu["using"] == "echo"
        names = {entry["id"] for entry in menu["models"]}
        assert {"echo", "slow", "smollm2-135m-instruct"} <= names


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
    ],
)
async def test_another_site_cannot_change_anything(tmp_path: Path, headers: dict[str, str]) -> None:
    async with page(tmp_path) as (client, service):
        sent = {"content-type": "application/json", **headers}
        refused = await client.post("/ui/turns", content=b'{"text": "hello"}', headers=sent)
        assert refused.status_code == 403
        assert await service.store.list() == []


async def test_the_page_itself_may(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, _):
        own = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
        assert (await client.post("/ui/turns", json={"text": "hello"}, headers=own)).status_code == 200


async def test_an_empty_message_is_refused_and_leaves_no_conversation(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        refused = await client.post("/ui/turns", json={"text": "  \n"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "The message is empty."
        assert await service.store.list() == []


async def test_what_may_work_later_is_refused_with_the_time_to_wait(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        service.runs.stopping = True
        refused = await client.post("/ui/turns", json={"text": "hello"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1


async def test_what_a_folder_holds_is_listed_under_its_name_once_it_is_open(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        for number in range(42):
            made = await service.store.create(title=f"Filed {number}")
            await service.store.library.file(made.id, folder="A & B")
        await service.store.create(title="Loose")
        closed = (await client.get("/ui/conversations")).text
        assert ("A &amp; B" in closed, "Loose" in closed, "Filed" in closed) == (True, True, False)
        opened = (await client.get("/ui/conversations", params={"open": ["A & B", "Gone"]})).text
        assert (opened.count('data-action="rename"'), "Gone" in opened, ">Filed 2<" in opened) == (
            41,
            False,
            True,
        )
        before = opened.partition('data-before="')[2].partition('"')[0]
        more = (await client.get("/ui/folder", params={"name": "A & B", "before": before})).text
        assert [f">Filed {number}<" in more for number in (0, 1, 2)] == [True, True, False]


async def test_a_conversation_is_opened_as_far_back_as_the_message_that_was_found(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        made = await service.store.create()
        said = [Message.of(("user", "assistant")[at % 2], f"number {at}") for at in range(120)]
        rows = await service.store.items.append(made.id, said)
        there = (await client.get(f"/ui/conversations/{made.id}", params={"reach": rows[10].id})).json()
        assert (rows[6].id in there["html"], rows[5].id in there["html"]) == (True, False)
        assert there["older"] == rows[6].id
        newest = (await client.get(f"/ui/conversations/{made.id}", params={"reach": rows[119].id})).json()
        unknown = (await client.get(f"/ui/conversations/{made.id}", params={"reach": "msg_none"})).json()
        assert newest["older"] == unknown["older"] == rows[70].id


@pytest.mark.parametrize("field", ["text", "conversation", "model", "system"])
async def test_half_a_character_is_refused_wherever_it_stands(tmp_path: Path, field: str) -> None:
    body = json.dumps({"text": "Hi", field: "\ud800"}).encode()
    async with page(tmp_path) as (client, service):
        answer = await client.post("/ui/turns", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert await service.store.list() == []
