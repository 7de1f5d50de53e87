"""Watching a response: live or from the store, from its beginning or after any event. Viewers change nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from rallychat.api.responses import objects
from rallychat.api.responses.events import Event, Telling, frame, retold
from rallychat.errors import Conflict, RallyChatError
from rallychat.messages import Event as TurnEvent
from rallychat.messages import Failed, Part, Reasoning, ReasoningDelta, Started, Text, TextDelta
from rallychat.responding import current
from rallychat.runs import Run
from rallychat.store import StoredResponse

if TYPE_CHECKING:
    from rallychat.chat import ChatService


async def watched(
    service: ChatService, stored: StoredResponse, run: Run | None, *, after: int = -1
) -> AsyncGenerator[bytes, None]:
    """The frames of a response's events that come after number `after`, to its end."""
    async with aclosing(_events(service, stored, run)) as events:
        async for event in events:
            if event["sequence_number"] > after:
                yield frame(event)


async def _events(
    service: ChatService, stored: StoredResponse, run: Run | None
) -> AsyncGenerator[Event, None]:
    queued: bool = stored.request["background"]
    telling = Telling(objects.beginning(stored, queued=queued), stored.answer.id, queued=queued)
    for event in telling.opening():
        yield event
    async for turn_event in _turn(stored, run):
        for event in _told(telling, turn_event):
            yield event
    for event in telling.closing(await _ended(service, stored, run)):
        yield event


async def _ended(service: ChatService, stored: StoredResponse, run: Run | None) -> Event:
    """The response when its answer has ended, be it that the end could not be stored."""
    if run is None:
        return objects.response_object(stored)
    stored, _ = await current(service, stored.id)
    if stored.answer.status == "running" and isinstance(run.end, Failed):
        error = str(RallyChatError(run.end.message, hint=run.end.hint))
        parts = objects.joined([*run.before, *_parts(run.events)])
        ended = replace(stored.answer, status="complete", finish_reason="error", error=error, parts=parts)
        stored = replace(stored, answer=ended)
    return objects.response_object(stored)


async def _turn(stored: StoredResponse, run: Run | None) -> AsyncIterator[TurnEvent]:
    if run is None:
        for delta in retold(stored.answer.parts, stored.cuts or ()):
            yield delta
        return
    for delta in retold(run.before, ()):
        yield delta
    async with aclosing(run.attach(apart=True)) as events:
        async for event in events:
            yield event


def _told(telling: Telling, event: TurnEvent) -> list[Event]:
    if isinstance(event, TextDelta | ReasoningDelta):
        return telling.delta(event)
    return telling.started() if isinstance(event, Started) else []


async def seen(service: ChatService, response_id: str) -> Event:
    """A response as it is at this moment, with what has been said so far."""
    stored, run = await current(service, response_id)
    return snapshot(stored, run)


def snapshot(stored: StoredResponse, run: Run | None) -> Event:
    """The response object of a response that `run` may be making."""
    if run is None:
        return objects.response_object(stored)
    parts = (*run.before, *_parts(run.events))
    answer = replace(stored.answer, parts=objects.joined(parts))
    waiting = stored.request["background"] and not any(
        isinstance(event, Started | TextDelta | ReasoningDelta) for event in run.events
    )
    return objects.response_object(replace(stored, answer=answer), waiting=waiting)


async def to_watch(service: ChatService, response_id: str) -> tuple[StoredResponse, Run | None]:
    """What `watched` needs.

    Raises:
        NotFound: there is none. Conflict: another process is making it.
    """
    stored, run = await current(service, response_id)
    if stored.answer.status == "running" and run is None:
        raise Conflict(
            f"Response '{response_id}' is being made by another process.", hint="ask again without 'stream'"
        )
    return stored, run


def _parts(events: Iterable[TurnEvent]) -> list[Part]:
    return [
        Text(event.text) if isinstance(event, TextDelta) else Reasoning(event.text)
        for event in events
        if isinstance(event, TextDelta | ReasoningDelta)
    ]


def said_nothing(run: Run) -> Failed | None:
    """The failure of an answer that ended before its first word."""
    if not isinstance(run.end, Failed) or _parts(run.events):
        return None
    return run.end
