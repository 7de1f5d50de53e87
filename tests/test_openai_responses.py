"""OpenAI's own Python client, unchanged, with Responses and Conversations of a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.conversations import Conversation, ConversationItem, ConversationItemList
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.live_server import Live, live
from tests.responses_world import write_models

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
INPUT: TypeAdapter[Any] = TypeAdapter(ResponseItem)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("responses")
    write_models(folder)
    with live(folder, slots=2, max_loaded=3) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0) as opened:
        yield opened


def valid(response: Response) -> Response:
    """What came, checked strictly against the client's own type: the client itself takes anything."""
    return Response.model_validate(response.model_dump(exclude_unset=True), strict=True)


def test_a_response_is_answered_and_retrieved(client: OpenAI) -> None:
    made = client.responses.create(
        model="echo", input="Hello", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}
    )
    assert (made.output_text, made.status, made.instructions) == ("Hello", "completed", "Be brief.")
    assert (made.temperature, made.metadata) == (0.5, {"a": "b"})
    assert valid(made).usage is not None
    assert client.responses.retrieve(made.id) == made


def test_a_response_tells_the_sampling_that_is_used_and_gives_back_what_it_was_given(client: OpenAI) -> None:
    noted: dict[str, Any] = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}
    made = client.responses.create(model="echo", input="Hello", top_p=0.25, **noted)
    assert {name: getattr(made, name) for name in noted} == noted
    assert made.top_p == 0.25
    assert made.temperature is not None
    assert valid(client.responses.retrieve(made.id)) == made
    warm = client.conversations.create(extra_body={"sampling": {"temperature": 1.5, "top_p": 0.5}})
    answer = client.responses.create(model="echo", input="Hello", conversation=warm.id, top_p=0.25)
    assert (answer.temperature, answer.top_p) == (1.5, 0.25)
    below = client.responses.create(input="Hello", previous_response_id=answer.id, store=False)
    assert (below.temperature, below.top_p) == (1.5, 0.5)


def test_what_an_assistant_said_may_be_written_as_input_text(client: OpenAI) -> None:
    said: Any = [{"type": "input_text", "text": "Two"}]
    items: Any = [{"role": "user", "content": "One"}, {"role": "assistant", "content": said}]
    made = client.conversations.create(items=items)
    listed: list[Any] = list(client.conversations.items.list(made.id, order="asc"))
    assert [(item.content[0].type, item.content[0].text) for item in listed] == [
        ("input_text", "One"),
        ("output_text", "Two"),
    ]
    client.responses.create(model="echo", input=[*items, {"role": "user", "content": "Three"}])
    picture: Any = [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}]
    with pytest.raises(openai.BadRequestError, match="'input_image' parts are not supported"):
        client.conversations.create(items=picture)


def test_what_is_not_there_of_responses_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="input_tokens' is not supported"):
        client.responses.input_tokens.count(model="echo", input="Hello")
    with pytest.raises(openai.NotFoundError, match="compact' is not supported"):
        client.responses.compact(model="echo", input="Hello")


def test_responses_follow_each_other(client: OpenAI) -> None:
    first = client.responses.create(model="echo", input="One")
    second = client.responses.create(input="Two", previous_response_id=first.id)
    assert (second.output_text, second.model, second.previous_response_id) == ("Two", "echo", first.id)
    [item] = client.responses.input_items.list(second.id)
    assert item.type == "message"
    INPUT.validate_python(item.model_dump(exclude_unset=True))


def test_a_stream_is_the_client_s_own_events(client: OpenAI) -> None:
    with client.responses.create(
        model="thinking", input="!say <think>So</think>Hello", stream=True
    ) as stream:
        events = list(stream)
    for event in events:
        EVENT.validate_python(event.model_dump(exclude_unset=True), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]  # type: ignore[union-attr]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello"
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "So"


def test_the_client_s_stream_helper_reads_the_stream(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input="Hello, world") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "Hello, world"
    valid(client.responses.retrieve(final.id))


def test_a_background_response_is_resumed_where_the_stream_broke_off(client: OpenAI) -> None:
    events = []
    with client.responses.create(model="slow", input="!count 30", background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 9:
                break
    name = events[0].response.id  # type: ignore[union-attr]
    after = events[-1].sequence_number
    events += client.responses.retrieve(name, stream=True, starting_after=after)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == " ".join(map(str, range(1, 31)))
    assert events[-1].type == "response.completed"
    with client.responses.stream(response_id=name, starting_after=after) as resumed:
        assert resumed.get_final_response().output_text == said


def test_who_waits_in_line_is_told_so_in_the_stream_and_when_asked(client: OpenAI) -> None:
    client.responses.create(model="slow", input="Be loaded")
    streams = [client.responses.create(model="slow", input="!count 5000", stream=True) for _ in range(3)]
    begun: list[list[Any]] = [[next(stream), next(stream)] for stream in streams]
    in_background = client.responses.create(model="slow", input="!count 3", background=True)
    names = [first.response.id for first, _ in begun]
    try:
        created, queued = begun[2]
        assert (created.type, queued.type) == ("response.created", "response.queued")
        for event in (created, queued):
            EVENT.validate_python(event.model_dump(exclude_unset=True), strict=True)
            assert event.response.status == "queued"
            assert event.response.queue["position"] == 1
            assert event.response.queue["seconds"] > 0
        waiting: Any = client.responses.retrieve(names[2])
        assert (valid(waiting).status, waiting.queue["position"]) == ("queued", 1)
        behind: Any = in_background
        while behind.queue is None:
            assert behind.status == "queued"
            behind = client.responses.retrieve(in_background.id)
        assert behind.status == "queued"
        assert behind.queue["position"] > 1  # what the server prepares for later may stand there, too
    finally:
        for name in names[:2]:
            client.responses.cancel(name)
    third = begun[2] + [next(streams[2]) for _ in range(4)]
    client.responses.cancel(names[2])
    third += streams[2]
    assert third[2].type == "response.in_progress"
    assert third[2].response.queue is None
    assert [event.sequence_number for event in third] == list(range(len(third)))
    assert list(client.responses.retrieve(names[2], stream=True)) == third
    assert list(client.responses.retrieve(names[2], stream=True, starting_after=0)) == third[1:]


def test_a_response_is_cancelled_and_deleted(client: OpenAI) -> None:
    made = client.responses.create(model="slow", input="!count 5000", background=True)
    assert made.status in ("queued", "in_progress")
    ended = client.responses.cancel(made.id)
    assert valid(ended).status == "cancelled"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve(made.id)
    assert missing.value.code == "response_not_found"


def test_closing_a_stream_does_not_end_a_stored_answer(client: OpenAI) -> None:
    stream = client.responses.create(model="slow", input="!count 20", stream=True)
    created = next(iter(stream))
    stream.close()
    name = created.response.id  # type: ignore[union-attr]
    *_, last = client.responses.retrieve(name, stream=True)
    assert last.response.output_text == " ".join(map(str, range(1, 21)))  # type: ignore[union-attr]


def test_a_conversation_and_its_items(client: OpenAI) -> None:
    made = client.conversations.create(
        items=[{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}],
        metadata={"a": "b"},
    )
    Conversation.model_validate(made.model_dump(exclude_unset=True), strict=True)
    assert client.conversations.retrieve(made.id).metadata == {"a": "b"}
    assert client.conversations.update(made.id, metadata={"c": "d"}).metadata == {"c": "d"}
    answer = client.responses.create(model="echo", input="Three", conversation=made.id)
    assert answer.conversation is not None
    assert answer.conversation.id == made.id
    added = client.conversations.items.create(made.id, items=[{"role": "user", "content": "Four"}])
    ConversationItemList.model_validate(added.model_dump(exclude_unset=True))
    listed = list(client.conversations.items.list(made.id, limit=2, order="asc"))
    for item in listed:
        ITEM.validate_python(item.model_dump(exclude_unset=True), strict=True)
    texts = [item.content[0].text for item in listed if item.type == "message"]  # type: ignore[union-attr]
    assert texts == ["One", "Two", "Three", "Three", "Four"]
    one = client.conversations.items.retrieve(listed[0].id or "", conversation_id=made.id)
    assert one == listed[0]
    left = client.conversations.items.delete(listed[0].id or "", conversation_id=made.id)
    assert left.id == made.id
    assert [item.id for item in client.conversations.items.list(made.id)] == [i.id for i in listed[:0:-1]]
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        client.conversations.retrieve(made.id)
    assert missing.value.code == "conversation_not_found"


def test_a_conversation_begins_with_a_persona_and_is_answered_as_it_says(client: OpenAI) -> None:
    pirate = {
        "name": "Pirate",
        "system": "Arr.",
        "model": "slow",
        "sampling": {"max_tokens": 3, "stop": ["9"]},
    }
    persona = client.post("/personas", body=pirate, cast_to=dict[str, Any])
    made = client.conversations.create(extra_body={"persona": persona["id"], "sampling": {"stop": ["8"]}})
    Conversation.model_validate(made.model_dump(exclude_unset=True), strict=True)
    assert {name: getattr(made, name) for name in ("system", "model", "sampling")} == {
        "system": "Arr.",
        "model": "slow",
        "sampling": {"max_tokens": 3, "stop": ["8"]},
    }
    client.delete(f"/personas/{persona['id']}", cast_to=dict[str, Any])
    answer = client.responses.create(input="!count 20", conversation=made.id)
    below = client.responses.create(input="!count 20", previous_response_id=answer.id, store=False)
    for each in (answer, below):
        assert each.usage is not None
        assert (each.model, each.status, each.usage.output_tokens) == ("slow", "incomplete", 3)
        assert each.context["segments"][0]["kind"] == "system"  # type: ignore[attr-defined]


def test_system_prompt_model_and_sampling_of_a_conversation_are_changed(client: OpenAI) -> None:
    made = client.conversations.create(
        extra_body={"system": "Arr.", "model": "slow", "sampling": {"top_k": 3}}
    )
    path = f"/conversations/{made.id}"
    kept = client.patch(path, body={"model": None, "sampling": {}, "pinned": True}, cast_to=dict[str, Any])
    assert (kept["system"], kept["model"], kept["sampling"], kept["pinned"]) == ("Arr.", None, {}, True)
    assert client.conversations.retrieve(made.id).to_dict() == kept
    with pytest.raises(openai.NotFoundError) as missing:
        client.patch(path, body={"model": "no-such", "title": "Not kept"}, cast_to=dict[str, Any])
    assert missing.value.code == "model_not_found"
    assert client.conversations.retrieve(made.id).to_dict() == kept
    with pytest.raises(openai.NotFoundError):
        client.conversations.create(extra_body={"persona": "persona_none"})


def test_the_context_tells_the_tokens_of_what_was_left_out(client: OpenAI) -> None:
    made = client.conversations.create()
    short: dict[str, Any] = {"strategy": "last_n", "budget": 64}
    counted: dict[str, int] = {}
    left: dict[str, int] = {}
    for n in range(8):
        text = "One more word of it. " * (n + 1)
        answer: Any = client.responses.create(
            model="echo", input=text, conversation=made.id, extra_body=short
        )
        context = answer.context
        assert set(context["left_tokens"]) == {*context["compacted"], *context["dropped"]}
        left |= context["left_tokens"]
        counted |= {part["message"]: part["tokens"] for part in context["segments"] if part["message"]}
    seen = left.keys() & counted.keys()  # but for answers that were in no prompt
    assert len(seen) > 3
    assert {name: left[name] for name in seen} == {name: counted[name] for name in seen}


def test_an_empty_conversation_has_an_empty_list(client: OpenAI) -> None:
    made = client.conversations.create()
    assert list(client.conversations.items.list(made.id)) == []


def test_errors_are_the_client_s_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as tools:
        client.responses.create(input="x", tools=[{"type": "web_search"}])
    assert (tools.value.param, tools.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="echo", input="word " * 9000, stream=True)
    assert long.value.code == "context_length_exceeded"


def test_an_answer_that_breaks_off_is_a_failed_response(client: OpenAI) -> None:
    *_, last = client.responses.create(model="echo", input="!fail 5", stream=True)
    assert last.type == "response.failed"
    assert valid(last.response).error is not None
    assert client.responses.retrieve(last.response.id) == last.response


def test_the_same_key_gets_the_same_response_while_it_is_made(client: OpenAI, server: Live) -> None:
    made: list[Response] = []

    def ask() -> None:
        made.append(
            client.responses.create(
                model="slow", input="!count 30", extra_headers={"Idempotency-Key": "the-same"}
            )
        )

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({response.id for response in made}) == 1
    assert {response.output_text for response in made} == {" ".join(map(str, range(1, 31)))}


async def test_the_async_client_works_as_well(server: Live) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0
    ) as client:
        made = await client.responses.create(model="echo", input="Hello")
        again = await client.responses.create(input="Bye", previous_response_id=made.id)
        assert (await client.responses.retrieve(again.id)).output_text == "Bye"


@pytest.mark.real
def test_the_real_model_answers_resumes_and_reuses_its_prompt(tmp_path: Path, smollm2_gguf: Path) -> None:
    alone = {"titles": False, "latency_factor": 0}  # nothing else takes the slot between the two
    with live(tmp_path, slots=1, model=str(smollm2_gguf), **alone) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0) as client:
            first = client.responses.create(
                input="Name three colours.", instructions="Be brief.", max_output_tokens=40, temperature=0
            )
            assert valid(first).usage is not None
            assert first.output_text
            second = client.responses.create(
                input="And three animals.",
                instructions="Be brief.",
                previous_response_id=first.id,
                max_output_tokens=40,
                background=True,
                stream=True,
            )
            seen = [next(iter(second)) for _ in range(6)]
            second.close()
            name = seen[0].response.id  # type: ignore[union-attr]
            seen += client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number)
            assert [event.sequence_number for event in seen] == list(range(len(seen)))
            done = client.responses.retrieve(name)
            said = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
            assert said == done.output_text != ""
            assert done.usage is not None
            assert first.usage is not None
            assert done.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 2
