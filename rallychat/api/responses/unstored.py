"""Responses of which nothing is kept (`store: false`): they live and end with their request."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rallychat.api.chunks import Answer
from rallychat.api.delivery import comment, described
from rallychat.api.errors import CUT_OFF, Refusal, problem_of_end
from rallychat.api.responses import objects
from rallychat.api.responses.events import Telling, frame
from rallychat.errors import EngineInterrupted, RallyChatError
from rallychat.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Loading,
    Part,
    Queued,
    Reasoning,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
)
from rallychat.runs import End
from rallychat.store import StoredMessage, StoredResponse


def blank(request: Mapping[str, Any], model: str) -> StoredResponse:
    """A response that will never be stored, before its first word."""
    answer = StoredMessage.unstored(
        f"msg_{secrets.token_hex(12)}",
        "assistant",
        created_at=datetime.now(UTC),
        model=model,
        status="running",
    )
    return StoredResponse(answer, request, None)


def whole(response: StoredResponse, answer: Answer) -> dict[str, Any]:
    """The response object of a whole answer."""
    parts: list[Part] = [Reasoning(answer.reasoning)] if answer.reasoning else []
    parts += [Text(answer.text)] if answer.text else []
    return objects.response_object(_ended(response, parts, answer.finished))


async def streamed(response: StoredResponse, events: AsyncGenerator[Event]) -> AsyncGenerator[bytes, None]:
    """The frames of an answer as it is made.

    Raises:
        Refusal: it failed before anything could be said of it.
    """
    telling: Telling | None = None
    parts: list[Part] = []
    async with aclosing(events):
        async for event in events:
            if telling is None and isinstance(event, Loading | Started):
                continue  # it may still fail before its first word
            if telling is None:
                telling = _telling(response, event)
                for said in telling.opening():
                    yield frame(said)
            match event:
                case TextDelta() | ReasoningDelta():
                    parts.append(Text(event.text) if isinstance(event, TextDelta) else Reasoning(event.text))
                    for said in telling.delta(event):
                        yield frame(said)
                case Finished() | Failed():
                    ended = _ended(response, objects.joined(parts), event)
                    for said in telling.closing(objects.response_object(ended)):
                        yield frame(said)
                case Started():
                    for said in telling.started():
                        yield frame(said)
                case Queued():
                    yield comment(described(event))
                case _:
                    pass


def _telling(response: StoredResponse, first: Event) -> Telling:
    """How it is told, by the first that is known of it. Raises Refusal."""
    if isinstance(first, Failed):
        raise Refusal(problem_of_end(first, prompt="input") or CUT_OFF)
    if isinstance(first, Queued):
        response = replace(response, request={**response.request, "queue": objects.queue_of(first)})
    queued = objects.begins_queued(response)
    return Telling(objects.beginning(response), response.answer.id, queued=queued)


def _ended(response: StoredResponse, parts: Sequence[Part], end: End) -> StoredResponse:
    answer = replace(response.answer, parts=tuple(parts), status="complete")
    if isinstance(end, Finished):
        answer = replace(answer, finish_reason=end.reason, usage=end.usage, timings=end.timings)
        answer = replace(answer, report=end.report)
    else:
        reason: FinishReason = "interrupted" if end.code == EngineInterrupted.code else "error"
        error = str(RallyChatError(end.message, hint=end.hint))
        answer = replace(answer, finish_reason=reason, error=error, error_code=end.code)
    return replace(response, answer=answer)
