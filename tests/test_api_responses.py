"""/v1/responses over the echo engine: where answers hang, who owns them, how they are watched, and how they end."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from rallychat.api import delivery
from rallychat.errors import StoreError, StoreUnavailable
from rallychat.store import Conversation
from tests.responses_world import (
    ENDLESS,
    asked,
    deltas,
    events_of,
    items,
    next_run,
    said_something,
    text_of,
    told,
    world,
)


async def test_a_response_is_answered_and_can_be_retrieved(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "Hello", metadata={"a": "b"}, temperature=0.5, max_output_tokens=50)
        assert (made["status"], text_of(made)) == ("completed", "Hello")
        assert (made["metadata"], made["temperature"], made["max_output_tokens"]) == ({"a": "b"}, 0.5, 50)
        assert (await http.get(f"/v1/responses/{made['id']}")).json() == made
    async with world(tmp_path) as (http, _):
        assert (await http.get(f"/v1/responses/{made['id']}")).json() == made


async def test_a_response_says_of_tools_what_was_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        given: dict[str, Any] = {"tool_choice": "none", "parallel_tool_calls": False}
        for asks, says in (
            ({}, ("auto", True)),
            (given, ("none", False)),
            (given | {"store": False}, ("none", False)),
        ):
            made = await asked(http, "Hello", **asks)
            assert (made["tool_choice"], made["parallel_tool_calls"]) == says


async def test_a_database_that_is_away_once_a_response_is_begun_leaves_none_that_nobody_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: str) -> Conversation:
        raise StoreUnavailable("The database cannot be reached.")

    async with world(tmp_path) as (http, service):
        monkeypatch.setattr(service.store, "get", away)
        made = await asked(http, "Hello")
        assert (made["status"], text_of(made)) == ("completed", "Hello")


@pytest.mark.parametrize("fails", [StoreUnavailable, StoreError])
async def test_an_answer_is_stored_although_its_tokens_could_not_be_kept(
    fails: type[StoreError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise fails("The database cannot be reached.")

    async with world(tmp_path) as (http, service):
        monkeypatch.setattr(service.store, "save_spans", away)
        made = await asked(http, "Hello")
        assert (made["status"], text_of(made)) == ("completed", "Hello")


async def test_a_chain_of_responses_stands_in_no_list_of_conversations(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        first = await asked(http, "One")
        second = await asked(http, "Two", previous_response_id=first["id"])
        assert (second["previous_response_id"], second["conversation"]) == (first["id"], None)
        assert await service.store.list() == []
        assert (await http.get("/v1/conversations")).json()["data"] == []


async def test_two_responses_to_the_same_one_are_branches_of_a_tree(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        root = await asked(http, "Root")
        left, right = await asyncio.gather(
            *(asked(http, text, previous_response_id=root["id"]) for text in ("Left", "Right"))
        )
        paths = []
        for leaf in (left, right):
            answer = (await service.store.responses.get(leaf["id"])).answer
            paths.append([r.text for r in await service.store.path(answer.conversation_id, tip=answer.id)])
    assert paths == [["Root", "Root", "Left", "Left"], ["Root", "Root", "Right", "Right"]]


async def test_a_chain_is_seen_from_its_newest_answer_so_that_idle_work_knows_what_comes_next(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as (http, service):
        first = await asked(http, "One")
        await asked(http, "Two", previous_response_id=first["id"])
        begun = next_run(service)
        last = await asked(http, "Other", previous_response_id=first["id"])
        answer = (await service.store.responses.get(last["id"])).answer
        assert (await service.store.get(answer.conversation_id)).tip_id == answer.id
        assert (await begun).conversation_id == answer.conversation_id


async def test_the_prompt_of_a_branch_is_reused_from_the_cache(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as (http, _):
        first = await asked(http, "Something to remember")
        second = await asked(http, "More", previous_response_id=first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 2


async def test_idle_time_prepares_for_the_instructions_that_the_answer_before_had(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as (http, service):
        first = await asked(http, "Something to remember", instructions="Be brief.")
        await service.idle.settled()
        second = await asked(http, "More", instructions="Be brief.", previous_response_id=first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 2


async def test_a_response_in_a_conversation_appends_to_it(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        made = await asked(http, "One", conversation=conversation)
        await asked(http, "Two", conversation={"id": conversation})
        assert made["conversation"] == {"id": conversation}
        assert await items(http, conversation) == ["One", "One", "Two", "Two"]
        assert [c.title for c in await service.store.list()] == ["One"]


async def test_a_branch_off_a_conversation_leaves_its_view_alone_and_may_grow_beside_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as (http, _):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        first = await asked(http, "One", conversation=conversation)
        running = await asked(http, "!count 5000", model="slow", conversation=conversation, background=True)
        aside = await asked(http, "Aside", previous_response_id=first["id"])
        assert text_of(aside) == "Aside"
        refused = await http.post("/v1/responses", json={"input": "Two", "conversation": conversation})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        await http.post(f"/v1/responses/{running['id']}/cancel")
        await asked(http, "Two", conversation=conversation)
        assert (await items(http, conversation))[:3] == ["One", "One", "!count 5000"]
        assert "Aside" not in await items(http, conversation)


async def test_instructions_are_the_system_prompt_of_one_response_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        first = await asked(http, "One", instructions="Be brief.")
        second = await asked(http, "Two", previous_response_id=first["id"])
        assert (first["instructions"], second["instructions"]) == ("Be brief.", None)
        reports = [(await service.store.responses.get(r["id"])).answer.report for r in (first, second)]
    kinds = [[segment.kind for segment in report.segments] for report in reports if report]
    assert kinds[0][0] == "system"
    assert "system" not in kinds[1]


async def test_system_items_that_begin_a_conversation_stay_its_system_prompt(tmp_path: Path) -> None:
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
        {"role": "user", "content": "Three"},
    ]
    async with world(tmp_path) as (http, service):
        first = (await http.post("/v1/responses", json={"input": said})).json()
        assert text_of(first) == "Three"
        second = await asked(http, "Four", previous_response_id=first["id"])
        report = (await service.store.responses.get(second["id"])).answer.report
        listed = (await http.get(f"/v1/responses/{first['id']}/input_items?order=asc")).json()
    assert report is not None
    assert report.segments[0].kind == "system"
    assert [(item["type"], item.get("role")) for item in listed["data"]] == [
        ("message", "system"),
        ("message", "user"),
        ("reasoning", None),
        ("message", "assistant"),
        ("message", "user"),
    ]
    assert listed["data"][2]["content"] == [{"type": "reasoning_text", "text": "Hm"}]


async def test_output_items_can_be_sent_back_as_they_came(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        first = await asked(http, "!say <think>Well</think>Yes", model="thinking")
        assert [item["type"] for item in first["output"]] == ["reasoning", "message"]
        history = [{"role": "user", "content": "Hi"}, *first["output"], {"role": "user", "content": "Bye"}]
        again = await http.post("/v1/responses", json={"input": history, "store": False})
        assert text_of(again.json()) == "Bye"


async def test_a_thought_comes_as_an_item_before_the_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "!say <think>Well</think>Yes", model="thinking")
        kinds = [(i["type"], i["content"][0]["type"], i["content"][0]["text"]) for i in made["output"]]
        assert kinds == [("reasoning", "reasoning_text", "Well"), ("message", "output_text", "Yes")]
        details = made["usage"]["output_tokens_details"]
        assert 0 < details["reasoning_tokens"] < made["usage"]["output_tokens"]
        names = [event["type"] for event in await told(http, made["id"])]
    assert names.index("response.reasoning_text.done") < names.index("response.output_text.delta")


@pytest.mark.parametrize("background", [False, True])
async def test_a_stream_is_the_same_live_and_afterwards_and_after_a_restart(
    tmp_path: Path, background: bool
) -> None:
    body = {"input": "!say <think>So</think>Hello, wörld 🙂!", "model": "thinking", "background": background}
    async with world(tmp_path) as (http, _):
        live = events_of((await http.post("/v1/responses", json=body | {"stream": True})).text)
        name = live[0]["response"]["id"]
        assert live[-1]["type"] == "response.completed"
        assert deltas(live) == "Hello, wörld 🙂!"
        assert await told(http, name) == live
    async with world(tmp_path) as (http, _):
        assert await told(http, name) == live
        for after in range(len(live)):
            assert await told(http, name, starting_after=after) == live[after + 1 :]
        assert (await http.get(f"/v1/responses/{name}")).json() == live[-1]["response"]


async def test_many_viewers_join_a_growing_answer_where_they_like_and_see_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = await asked(http, "!count 40", model="slow", background=True)
        assert (made["status"], made["output"]) == ("queued", [])
        run = service.runs.of_message(made["id"].replace("resp_", "msg_"))
        assert run is not None
        await said_something(run)
        now = (await http.get(f"/v1/responses/{made['id']}")).json()
        assert now["status"] == "in_progress"
        assert now["output"][0]["status"] == "in_progress"
        assert "1 2 3".startswith(text_of(now)[:3])
        whole, late, last = await asyncio.gather(
            told(http, made["id"]),
            told(http, made["id"], starting_after=5),
            told(http, made["id"], starting_after=60),
        )
        assert deltas(whole) == " ".join(map(str, range(1, 41)))
        assert (late, last) == (whole[6:], whole[61:])
        assert await told(http, made["id"]) == whole


async def test_a_stored_answer_goes_on_when_its_client_hangs_up(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        run = next_run(service)
        asking = asyncio.create_task(http.post("/v1/responses", json={"input": "!count 60", "model": "slow"}))
        growing = await run
        await said_something(growing)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await growing.wait()
        name = growing.message_id.replace("msg_", "resp_")
        made = (await http.get(f"/v1/responses/{name}")).json()
    assert (made["status"], text_of(made)) == ("completed", " ".join(map(str, range(1, 61))))


async def test_cancel_ends_an_answer_and_keeps_its_text(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (await http.post("/v1/responses", json=ENDLESS | {"background": True})).json()
        run = service.runs.of_message(made["id"].replace("resp_", "msg_"))
        assert run is not None
        watching = asyncio.create_task(told(http, made["id"]))
        await said_something(run)
        ended = (await http.post(f"/v1/responses/{made['id']}/cancel")).json()
        assert (ended["status"], ended["error"]) == ("cancelled", None)
        assert text_of(ended).startswith("1 2")
        assert (await http.post(f"/v1/responses/{made['id']}/cancel")).json() == ended
        seen = await watching
    assert (seen[-1]["type"], seen[-1]["response"]) == ("response.incomplete", ended)
    assert deltas(seen) == text_of(ended)


async def test_a_limit_leaves_an_answer_incomplete(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "Hello there", max_output_tokens=2)
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert made["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_is_failed_with_its_text(tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path) as (http, _):
        response = await http.post("/v1/responses", json={"input": "!fail 5", "stream": stream})
        made = events_of(response.text)[-1]["response"] if stream else response.json()
        assert (made["status"], made["error"]["code"]) == ("failed", "server_error")
        assert "as asked" in made["error"]["message"]
        assert text_of(made)
        assert (await http.get(f"/v1/responses/{made['id']}")).json() == made


@pytest.mark.parametrize("more", [{}, {"stream": True}])
async def test_a_response_that_cannot_begin_is_refused_and_leaves_nothing(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    async with world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        await asked(http, "One", conversation=conversation)
        for where in ({"conversation": conversation}, {}, {"store": False}):
            refused = await http.post("/v1/responses", json={"input": "word " * 9000, **where, **more})
            assert refused.status_code == 400, where
            assert refused.json()["error"]["code"] == "context_length_exceeded"
            assert refused.json()["error"]["param"] == "input"
        assert await items(http, conversation) == ["One", "One"]
        assert len(await service.store.list()) == 1
        await asked(http, "Two", conversation=conversation)


@pytest.mark.parametrize("more", [{}, {"store": False}])
async def test_a_stream_that_fails_before_its_first_word_is_refused_and_leaves_nothing(
    tmp_path: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SOON", 60)
    async with world(tmp_path) as (http, service):
        run = next_run(service)
        refused = await http.post("/v1/responses", json={"input": "!fail 0", "stream": True, **more})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_interrupted")
        if not more:
            assert (await http.get(f"/v1/responses/resp_{(await run).message_id[4:]}")).status_code == 404


async def test_a_background_response_that_cannot_begin_is_failed(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "word " * 9000, background=True)
        seen = await told(http, made["id"])
    assert [e["type"].removeprefix("response.") for e in seen] == [
        "created",
        "queued",
        "in_progress",
        "failed",
    ]
    assert "window" in seen[-1]["response"]["error"]["message"]
    assert seen[-1]["response"]["error"]["code"] == "invalid_prompt"


@pytest.mark.sqlite
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_to_be_stored_is_nowhere(tmp_path: Path, stream: bool) -> None:
    async with world(tmp_path) as (http, service):
        first = await asked(http, "One")
        body = {"input": "secret", "store": False, "previous_response_id": first["id"], "stream": stream}
        response = await http.post("/v1/responses", json=body)
        made = events_of(response.text)[-1]["response"] if stream else response.json()
        assert (made["store"], text_of(made)) == (False, "secret")
        assert made["usage"]["input_tokens"] > first["usage"]["total_tokens"]
        assert (await http.get(f"/v1/responses/{made['id']}")).status_code == 404
        path = service.settings.database
    assert b"secret" not in path.read_bytes()


async def test_what_is_excluded_stays_out_of_an_answer_that_is_not_stored_too(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        await service.store.update(conversation, system="Be brief.")
        for text in ("zebra", "lion"):
            last = await asked(http, text, conversation=conversation)
        zebra, _, lion, answer = await service.store.path(conversation)
        for row in (zebra, lion):
            await service.store.contexts.mark(row.id, "exclude")
        await service.store.contexts.mark(answer.id, "pin")
        ask = {"previous_response_id": last["id"], "store": False}
        seen = text_of(await asked(http, "!recall 500", **ask))
        assert seen == "Be brief.\n…\nlion\n!recall 500\n"
        seen = text_of(await asked(http, "!recall 500", instructions="", **ask))
        assert seen == "…\nlion\n!recall 500\n"


async def test_what_is_not_stored_ends_with_its_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        run = next_run(service)
        asking = asyncio.create_task(http.post("/v1/responses", json=ENDLESS | {"store": False}))
        growing = await run
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await growing.wait()
        assert growing.done


async def test_deleting_takes_what_nobody_else_needs(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        first = await asked(http, "One")
        second = await asked(http, "Two", previous_response_id=first["id"])
        home = (await service.store.responses.get(first["id"])).answer.conversation_id
        gone = await http.delete(f"/v1/responses/{first['id']}")
        assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
        assert (await http.get(f"/v1/responses/{first['id']}")).status_code == 404
        third = await asked(http, "Three", previous_response_id=second["id"])
        path = await service.store.path(home, tip=third["id"].replace("resp_", "msg_"))
        assert [row.text for row in path] == ["One", "One", "Two", "Two", "Three", "Three"]
        for left in (second, third):
            await http.delete(f"/v1/responses/{left['id']}")
        assert (await http.delete(f"/v1/responses/{third['id']}")).status_code == 404
        with pytest.raises(Exception, match="no conversation"):
            await service.store.get(home)


async def test_deleting_a_response_leaves_its_conversation_whole(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        made = await asked(http, "One", conversation=conversation)
        await http.delete(f"/v1/responses/{made['id']}")
        assert await items(http, conversation) == ["One", "One"]


async def test_deleting_a_growing_response_ends_it_first(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made = (await http.post("/v1/responses", json=ENDLESS | {"background": True})).json()
        run = service.runs.of_message(made["id"].replace("resp_", "msg_"))
        assert run is not None
        assert (await http.delete(f"/v1/responses/{made['id']}")).status_code == 200
        assert run.done


async def test_deleting_a_conversation_deletes_its_responses(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        made = await asked(http, "!count 5000", model="slow", conversation=conversation, background=True)
        assert (await http.delete(f"/v1/conversations/{conversation}")).json()["deleted"] is True
        assert (await http.get(f"/v1/responses/{made['id']}")).status_code == 404


async def test_following_a_response_that_is_still_made_is_a_conflict(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = (await http.post("/v1/responses", json=ENDLESS | {"background": True})).json()
        refused = await http.post("/v1/responses", json={"input": "x", "previous_response_id": made["id"]})
        assert refused.status_code == 409
        assert made["id"] in refused.json()["error"]["message"]


REFUSED: dict[str, list[Any]] = {
    "tools": [[{"type": "function", "name": "f"}]],
    "tool_choice": ["required", {"type": "function", "name": "f"}],
    "max_tool_calls": [1],
    "text": [{"format": {"type": "json_object"}}, {"verbosity": "high"}],
    "reasoning": [{"effort": "low"}, {"summary": "auto"}],
    "include": [["reasoning.encrypted_content"]],
    "top_logprobs": [1],
    "service_tier": ["flex"],
    "moderation": [{}],
    "prompt": [{"id": "pmpt_1"}],
    "context_management": [[{"type": "compaction"}]],
    "background_options": [{"completion_window": "2h"}],
    "prompt_cache_options": [{"mode": "explicit"}],
    "access_programs": [{"cyber": "standard"}],
    "image": [{"context_compression": "auto"}],
    "truncation": ["disabled", "never"],
    "store": ["yes", 1],
    "background": [1],
    "stream": ["true"],
    "conversation": ["", 5, {"id": ""}, {"name": "x"}],
    "previous_response_id": ["", 5],
    "metadata": [{"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}, {str(n): "v" for n in range(17)}, {"k": "\0"}],
    "instructions": [5, "\0"],
    "max_output_tokens": [0, "5"],
    "temperature": [-1, 3],
    "top_p": [0, 2],
    "messages": [[]],
    "max_tokens": [5],
    "n": [2],
}
HARMLESS: dict[str, list[Any]] = {
    "tools": [[]],
    "tool_choice": ["auto", "none"],
    "text": [{"format": {"type": "text"}}, {"verbosity": "medium"}, {}],
    "reasoning": [{}, {"effort": None}],
    "include": [[]],
    "top_logprobs": [0],
    "service_tier": ["auto", "default"],
    "truncation": ["auto", None],
    "parallel_tool_calls": [True],
    "stream_options": [{"include_obfuscation": False}],
    "user": ["me"],
    "safety_identifier": ["me"],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "seed": [1, -1],
    "top_k": [1],
    "min_p": [0.1],
    "repetition_penalty": [1.1],
    "metadata": [{}, {"a": "b"}],
    "instructions": ["", "Be brief."],
}


async def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        for field, value in itertools.chain(*(zip(itertools.repeat(f), v) for f, v in REFUSED.items())):
            refused = await http.post("/v1/responses", json={"input": "Hi", field: value})
            assert refused.status_code == 400, (field, value, refused.text)
            assert refused.json()["error"]["param"].startswith(field), (field, value, refused.text)
            assert f"'{field}" in refused.json()["error"]["message"], (field, value, refused.text)
        for field, value in itertools.chain(*(zip(itertools.repeat(f), v) for f, v in HARMLESS.items())):
            accepted = await http.post("/v1/responses", json={"input": "Hi", field: value})
            assert accepted.status_code == 200, (field, value, accepted.text)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"input": "x", "conversation": "c", "previous_response_id": "r"}, "previous_response_id", "exclude"),
        ({"input": "x", "store": False, "background": True}, "background", "stored"),
        ({"input": "x", "store": False, "conversation": "c"}, "conversation", "stored"),
        ({"input": "x", "store": False, "truncation": "auto"}, "truncation", "whole or not at all"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": 5}, "input", "string or a list of items"),
        ({}, "input", "missing"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input", "last item must be the user's"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "reasoning item must be followed"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "'item_reference' is not supported"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]", "'tool' is not supported"),
        ({"input": [{"content": "x"}]}, "input[0]", "'role'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "'input_image' parts are not supported",
        ),
        ({"input": "x", "model": "gpt-oops"}, "model", "no model"),
    ],
)
async def test_what_contradicts_itself_is_refused(
    tmp_path: Path, body: dict[str, Any], param: str, says: str
) -> None:
    async with world(tmp_path) as (http, _):
        error = (await http.post("/v1/responses", json=body)).json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


async def test_queries_are_checked_too(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "Hi")
        for query, param in {
            "include[]=x": "include[]",
            "starting_after=1": "starting_after",
            "stream=true&starting_after=-1": "starting_after",
            "stream=maybe": "stream",
        }.items():
            refused = await http.get(f"/v1/responses/{made['id']}?{query}")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), query
        for query in ("limit=0", "limit=101", "order=up", "page=2"):
            assert (await http.get(f"/v1/responses/{made['id']}/input_items?{query}")).status_code == 400
        for missing in ("resp_1", "msg_1", made["id"].replace("resp", "msg"), "resp_%00", "x" * 500):
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                found = await http.request(method, f"/v1/responses/{missing}{path}")
                assert (found.status_code, found.json()["error"]["code"]) == (404, "response_not_found")


async def test_a_response_says_what_of_the_conversation_was_in_its_prompt(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        for text in ("One", "Two", "Three"):
            await asked(http, text, conversation=conversation)
        made = await asked(http, "Four", conversation=conversation, strategy="last_n", budget=4000)
        listed = (await http.get(f"/v1/conversations/{conversation}/items?order=asc")).json()["data"]
        known = [item["id"] for item in listed[:-1]]
        context = made["context"]
        assert (context["strategy"], context["budget"] <= 4000) == ("last_n", True)
        assert sorted([*context["kept"], *context["compacted"], *context["dropped"]]) == known
        assert context["prompt_tokens"] == made["usage"]["input_tokens"]
        assert (await http.get(f"/v1/responses/{made['id']}")).json()["context"] == context
        one, two, *_ = known
        body = {"conversation": conversation, "pin": [one], "exclude": [known[2]], "strategy": "last_n"}
        context = (await asked(http, "Five", **body))["context"]
        assert context["kept"][0] == one
        assert context["excluded"] == [known[2]]
        after = (await asked(http, "Six", conversation=conversation))["context"]
        assert after["excluded"] == []
        for body, param in (
            ({"conversation": conversation, "pin": ["msg_0"]}, "pin"),
            ({"conversation": conversation, "exclude": [two, made["id"]]}, "exclude"),
            ({"pin": [one]}, "pin"),
            ({"pin": [one], "store": False}, "pin"),
            ({"strategy": "best"}, "strategy"),
            ({"strategy": "full", "store": False}, "strategy"),
            ({"budget": 5}, "budget"),
            ({"budget": 500, "store": False}, "budget"),
            ({"elsewhere": True, "store": False}, "elsewhere"),
        ):
            refused = await http.post("/v1/responses", json={"input": "x", **body})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
