"""Watching a response: live or from the store, from its beginning or after any event. Viewers change nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from rallychat.api.delivery import comment, described
from rallychat.api.responses import objects
from rallychat.api.responses.events import Event, Telling, frame
from rallychat.errors import Conflict, RallyChatError
from rallychat.following import retold
from rallychat.messages import Event as TurnEvent
from rallychat.messages import Failed, Part, Queued, Reasoning, ReasoningDelta, Started, Text, TextDelta
from rallychat.responding import current, followed
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
            if isinstance(event, bytes):
                yield event
            elif event["sequence_number"] > after:
                yield frame(event)


async def _events(
    service: ChatService, stored: StoredResponse, run: Run | None
) -> AsyncGenerator[Event | bytes, None]:
    """Events; and comments, which tell a place in line and have no number."""
    queued = objects.begins_queued(stored)
    telling = Telling(objects.beginning(stored), stored.answer.id, queued=queued)
    for event in telling.opening():
        yield event
    async for turn_event in _turn(stored, run):
        if isinstance(turn_event, Queued):
            yield comment(described(turn_event))
        for event in _told(telling, turn_event):
            yield event
    ended = await _ended(service, stored, run)
    if ended["status"] not in (
        "queued",
        "in_progress",
    ):  # else it goes on elsewhere, and only we are stopping
        for event in telling.closing(ended):
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
        stored = replace(stored, answer=replace(ended, error_code=run.end.code))
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
    begun = any(isinstance(event, Started | TextDelta | ReasoningDelta) for event in run.events)
    place = next((event for event in reversed(run.events) if isinstance(event, Queued)), None)
    waiting = not begun and (stored.request["background"] or place is not None)
    return objects.response_object(replace(stored, answer=answer), waiting=waiting, place=place)


async def to_watch(service: ChatService, response_id: str) -> tuple[StoredResponse, Run | None]:
    """What `watched` needs.

    Raises:
        NotFound: there is none. Conflict: its end could not be stored yet.
    """
    stored, run = await followed(service, response_id)
    if stored.answer.status == "running" and run is None:
        raise Conflict(
            f"The end of response '{response_id}' could not be stored yet.", hint="ask again later"
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
