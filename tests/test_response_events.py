"""A response told as events: OpenAI's order, whatever the answer; the same numbers however often it is told."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from rallychat.api.responses import objects
from rallychat.api.responses.events import Event, Telling, frame
from rallychat.following import retold
from rallychat.identity import acting_as
from rallychat.messages import (
    FinishReason,
    Part,
    Reasoning,
    ReasoningDelta,
    Text,
    TextDelta,
    Timings,
    Usage,
)
from rallychat.store import StoredMessage, StoredResponse
from tests.responses_world import events_of, world
from tests.responses_world import told as told_again

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REQUEST: dict[str, Any] = {
    "instructions": None,
    "previous_response_id": None,
    "max_output_tokens": None,
    "temperature": None,
    "top_p": None,
    "metadata": {"a": "b"},
    "conversation": None,
    "background": False,
    "store": True,
    "input": [],
}
Delta = TextDelta | ReasoningDelta
deltas = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=6).map(TextDelta), st.text(min_size=1, max_size=6).map(ReasoningDelta)
    ),
    max_size=12,
)
reasons: st.SearchStrategy[FinishReason] = st.sampled_from(
    ["stop", "length", "cancelled", "interrupted", "error"]
)


def stored(told: list[Delta], reason: FinishReason = "stop", **request: Any) -> StoredResponse:
    """The response whose answer was told so."""
    parts: list[Part] = [Text(d.text) if isinstance(d, TextDelta) else Reasoning(d.text) for d in told]
    answer = StoredMessage(
        id="msg_00000000000010000000000",
        conversation_id="conv_1",
        parent_id=None,
        role="assistant",
        parts=objects.joined(parts),
        model="echo",
        status="complete",
        finish_reason=reason,
        error="It broke." if reason == "error" else None,
        usage=Usage(7, 5, 3, 2),
        timings=Timings(total_ms=1500),
        report=None,
        span=None,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    return StoredResponse(answer, REQUEST | request, tuple(len(delta.text) for delta in told))


def told(response: StoredResponse, pieces: list[Delta] | None = None) -> list[Event]:
    """All its events: from the deltas as they came, or from the store."""
    queued = objects.begins_queued(response)
    telling = Telling(objects.beginning(response), response.answer.id, queued=queued)
    events = telling.opening()
    for piece in retold(response.answer.parts, response.cuts or ()) if pieces is None else pieces:
        events += telling.delta(piece)
    return events + telling.closing(objects.response_object(response))


@given(deltas, reasons, st.booleans())
def test_an_answer_told_from_the_store_has_the_events_it_was_told_in(
    pieces: list[Delta], reason: FinishReason, background: bool
) -> None:
    response = stored(pieces, reason, background=background)
    assert told(response) == told(response, pieces)


@given(deltas, reasons, st.data())
def test_whoever_resumes_anywhere_and_as_often_as_they_like_misses_nothing_and_hears_nothing_twice(
    pieces: list[Delta], reason: FinishReason, data: st.DataObject
) -> None:
    response = stored(pieces, reason)
    whole = told(response, pieces)
    heard: list[Event] = []
    while len(heard) < len(whole):
        after = heard[-1]["sequence_number"] if heard else -1
        left = [event for event in told(response) if event["sequence_number"] > after]
        heard += left[: data.draw(st.integers(1, len(left)))]
    assert heard == whole


@given(deltas, reasons, st.booleans())
def test_events_are_numbered_without_a_gap_and_are_the_client_s_own(
    pieces: list[Delta], reason: FinishReason, background: bool
) -> None:
    events = told(stored(pieces, reason, background=background))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENTS.validate_python(event, strict=True)
        assert frame(event).startswith(f"event: {event['type']}\ndata: {{".encode())


@given(deltas, reasons)
def test_the_deltas_make_the_items_and_the_items_make_the_output(
    pieces: list[Delta], reason: FinishReason
) -> None:
    response = stored(pieces, reason)
    events = told(response, pieces)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    output = events[-1]["response"]["output"]
    assert done == output
    for index, item in enumerate(output):
        said = [e["delta"] for e in events if e["type"].endswith(".delta") and e["output_index"] == index]
        assert "".join(said) == item["content"][0]["text"]
    assert len({item["id"] for item in output}) == len(output)


def test_the_order_is_openai_s() -> None:
    pieces: list[Delta] = [ReasoningDelta("Hm"), ReasoningDelta("m"), TextDelta("Ye"), TextDelta("s")]
    names = [event["type"].removeprefix("response.") for event in told(stored(pieces), pieces)]
    item = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    assert names == [
        *("created", "in_progress"),
        *(*item, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", *end),
        *(*item, "output_text.delta", "output_text.delta", "output_text.done", *end),
        "completed",
    ]


def test_a_background_response_is_queued_first() -> None:
    events = told(stored([], background=True))
    assert [(e["type"].removeprefix("response."), e["response"]["status"]) for e in events] == [
        ("created", "queued"),
        ("queued", "queued"),
        ("in_progress", "in_progress"),
        ("completed", "completed"),
    ]


@pytest.mark.parametrize(
    ("reason", "event", "status", "item"),
    [
        ("stop", "completed", "completed", "completed"),
        ("length", "incomplete", "incomplete", "incomplete"),
        ("cancelled", "incomplete", "cancelled", "incomplete"),
        ("interrupted", "failed", "failed", "incomplete"),
        ("error", "failed", "failed", "incomplete"),
    ],
)
def test_how_it_ended_is_the_last_event(reason: FinishReason, event: str, status: str, item: str) -> None:
    last = told(stored([TextDelta("Hi")], reason))[-1]
    response = Response.model_validate(last["response"], strict=True)
    assert (last["type"], response.status) == (f"response.{event}", status)
    assert [each.status for each in response.output if each.type == "message"] == [item]
    assert response.output_text == "Hi"
    assert (response.incomplete_details is not None) == (reason == "length")
    assert (response.error is not None) == (status == "failed")
    assert (response.completed_at is not None) == (reason == "stop")
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2


@given(
    st.lists(st.one_of(st.text(min_size=1).map(Text), st.text(min_size=1).map(Reasoning)), max_size=5),
    st.lists(st.integers(0, 4)),
)
def test_whatever_the_cuts_say_the_whole_text_is_retold(parts: list[Part], cuts: list[int]) -> None:
    pieces = list(retold(parts, cuts))
    assert all(piece.text for piece in pieces)
    kinds = {TextDelta: Text, ReasoningDelta: Reasoning}
    regrouped = [
        (kind, "".join(p.text for p in group))
        for kind, group in itertools.groupby(pieces, lambda p: kinds[type(p)])
    ]
    wanted = [
        (kind, "".join(p.text for p in group)) for kind, group in itertools.groupby(parts, lambda p: type(p))
    ]
    assert regrouped == wanted


@pytest.mark.parametrize("store", [True, False])
async def test_a_response_that_waits_in_line_says_so_between_its_numbered_events(
    tmp_path: Path, store: bool
) -> None:
    async with world(tmp_path, slots=1) as (http, service):
        await service.load("echo")
        engine = await service.pool.open(service.resolve("echo"))
        body = {"input": "hello", "model": "echo", "stream": True, "store": store}
        with acting_as("another"):
            holding = engine.slot([1])
            await holding.__aenter__()
        asking = asyncio.create_task(http.post("/v1/responses", json=body))
        while not engine.queue.waiting:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        await holding.__aexit__(None, None, None)
        text = (await asking).text
    assert ": queued, position 1, about" in text
    assert text.index("response.created") < text.index(": queued") < text.index("response.output_text.delta")
    events = events_of(text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events[:3]] == [
        "created",
        "queued",
        "in_progress",
    ]
    places = [event["response"]["queue"] and event["response"]["queue"]["position"] for event in events[:3]]
    assert places == [1, 1, None]
    assert events[-1]["response"]["queue"] is None
    if store:
        async with world(tmp_path) as (http, _):
            name = events[0]["response"]["id"]
            assert await told_again(http, name) == events
            assert await told_again(http, name, starting_after=1) == events[2:]
