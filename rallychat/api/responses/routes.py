"""/v1/responses: create, retrieve, watch, cancel, delete."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rallychat import responding
from rallychat.api import delivery
from rallychat.api.errors import CUT_OFF, Refusal, problem_of_end
from rallychat.api.idempotency import IdempotencyKey, StatefulRoute, announce, key_of, response_of
from rallychat.api.responses import objects, unstored, viewing
from rallychat.api.responses.answers import ItemList, ResponseDeleted, ResponseOut
from rallychat.api.responses.items import items_of
from rallychat.api.responses.pages import After, Limit, Order, page
from rallychat.api.responses.requests import ResponseRequest
from rallychat.api.routing import NAMED_EVENTS, json_response, problems
from rallychat.api.serving import service_of
from rallychat.errors import Forbidden, InvalidRequest, NotFound, StoreError
from rallychat.identity import current
from rallychat.messages import Queued
from rallychat.shelf import model_to_use

if TYPE_CHECKING:
    from rallychat.catalog import Model
    from rallychat.chat import ChatService
    from rallychat.messages import Event
    from rallychat.runs import Run
    from rallychat.store import StoredResponse
    from rallychat.wishes import Wish

router = APIRouter(route_class=StatefulRoute, tags=["responses"])
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"model": ResponseOut, "content": NAMED_EVENTS, "description": "The response, or its events."}
}


@router.post(
    "/v1/responses",
    response_model=None,
    responses={**_STREAMED, **problems(400, 403, 404, 409, 413, 415, 429, 500, 503)},
)
async def create_response(
    request: Request, asked: ResponseRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers what was said. Stored answers belong to the server: hanging up does not end them, cancel does."""
    service = service_of(request)
    if (known := response_of(request)) is not None:
        await _refuse_unless_open(service, known)
        return await _given(service, asked, *await viewing.to_watch(service, known), again=True)
    wish = _wish(asked)
    said = asked.messages()
    if asked.previous_response_id is not None:
        await _refuse_unless_open(service, asked.previous_response_id)
    at = await responding.place(
        service, conversation=asked.conversation_id, previous=asked.previous_response_id
    )
    model = model_to_use(service, asked.model or at.model)
    if not asked.kept:
        return await _unstored(request, service, asked, at, model)
    sampling = asked.sampling()
    stored, run = await responding.respond(
        service,
        at,
        said,
        model=model,
        sampling=sampling,
        instructions=asked.instructions,
        request=asked.echo(at.sampling(service, model, sampling)),
        wish=wish,
        key=key_of(request),
        patience=asked.timeout,
    )
    announce(request)
    return await _given(service, asked, stored, run)


def _wish(asked: ResponseRequest) -> Wish:
    """How the context is to be kept. A key that is not for conversations answers in none, and quotes none."""
    if current().may("conversations"):
        return asked.wish
    for name in ("conversation", "elsewhere"):
        if getattr(asked, name):
            raise _not_for_conversations(f"leave '{name}' out, or use another key")
    return replace(asked.wish, elsewhere=False)


async def _refuse_unless_open(service: ChatService, response_id: str) -> None:
    """Refuses a response in a conversation of the list to a key that is not for conversations.

    Raises:
        NotFound: there is none. Forbidden: it is not open to this key.
    """
    if current().may("conversations"):
        return
    stored = await service.store.responses.get(response_id)
    if (await service.store.get(stored.answer.conversation_id)).listed:
        raise _not_for_conversations(f"'{response_id}' is in a conversation: use another key")


def _not_for_conversations(hint: str) -> Forbidden:
    return Forbidden("This API key is not for 'conversations'.", hint=hint)


async def _given(
    service: ChatService,
    asked: ResponseRequest,
    stored: StoredResponse,
    run: Run | None,
    *,
    again: bool = False,
) -> Response:
    """A stored response in the way it was asked for.

    One that could not even begin is undone and refused; but not when it is asked for again: somebody was told of it.
    """
    if run is not None and not asked.background:
        first = await (_begun(run) if asked.stream else run.wait())
        if not again and (failed := viewing.said_nothing(run)) is not None:
            with suppress(NotFound):
                await service.store.responses.delete(stored.id, undo=True)
            raise Refusal(problem_of_end(failed, prompt="input") or CUT_OFF)
        if isinstance(first, Queued):
            stored = await _queued(service, stored, first)
    if asked.stream:
        return delivery.FrameStream(viewing.watched(service, stored, run))
    return json_response(await viewing.seen(service, stored.id))


async def _begun(run: Run) -> Event:
    """The first event there is. Who stands in no line is waited for a little: before the first word it may fail."""
    first = await run.begun()
    if not isinstance(first, Queued):
        with suppress(TimeoutError):
            await asyncio.wait_for(run.speaking(), delivery.SOON)
    return first


async def _queued(service: ChatService, stored: StoredResponse, place: Queued) -> StoredResponse:
    """The response, with the place in line that its events will tell, now and whenever they are told again."""
    if objects.begins_queued(stored):
        return stored
    with suppress(StoreError, NotFound):  # else comments tell it
        return await service.store.responses.note(stored, queue=objects.queue_of(place))
    return stored


async def _unstored(
    request: Request, service: ChatService, asked: ResponseRequest, at: responding.Place, model: Model
) -> Response:
    events = await responding.unstored(
        service,
        at,
        asked.messages(),
        model=model,
        sampling=asked.sampling(),
        instructions=asked.instructions,
        patience=asked.timeout,
    )
    used = at.sampling(service, model, asked.sampling())
    response = unstored.blank(asked.echo(used), model.id)
    if asked.stream:
        return delivery.FrameStream(unstored.streamed(response, events))
    gathered = await delivery.whole(request.receive, events, prompt="input")
    if gathered is None:
        return Response(status_code=delivery.CLIENT_GONE)
    return json_response(unstored.whole(response, gathered))


@router.get(
    "/v1/responses/{response_id}",
    response_model=None,
    responses={**_STREAMED, **problems(400, 403, 404, 409, 500, 503)},
)
async def retrieve_response(
    request: Request,
    response_id: str,
    stream: Annotated[bool, Query(description="Its events, from the first or after a given one.")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, description="The sequence_number of the last event that was seen.")
    ] = None,
    include_obfuscation: Annotated[bool, Query(description="Accepted; events are never padded.")] = False,
) -> Response:
    """A response as it is now, or its events."""
    service = service_of(request)
    await _refuse_unless_open(service, response_id)
    if not stream:
        if starting_after is not None:
            raise InvalidRequest("'starting_after' needs 'stream=true'.", param="starting_after")
        return json_response(await viewing.seen(service, response_id))
    stored, run = await viewing.to_watch(service, response_id)
    after = -1 if starting_after is None else starting_after
    return delivery.FrameStream(viewing.watched(service, stored, run, after=after))


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_model=None,
    responses={200: {"model": ResponseOut}, **problems(400, 403, 404, 500, 503)},
)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Ends an answer where it is; what was said is kept. One that has ended stays as it is."""
    service = service_of(request)
    await _refuse_unless_open(service, response_id)
    _, run = await responding.followed(service, response_id)
    if run is not None:
        await run.stop()
    return json_response(objects.response_object(await service.store.responses.get(response_id)))


@router.delete(
    "/v1/responses/{response_id}",
    response_model=None,
    responses={200: {"model": ResponseDeleted}, **problems(400, 403, 404, 409, 500, 503)},
)
async def delete_response(request: Request, response_id: str) -> Response:
    """Forgets a response, ending it first. What it added to a conversation stays there."""
    service = service_of(request)
    await _refuse_unless_open(service, response_id)
    await responding.forget(service, response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=None,
    responses={200: {"model": ItemList}, **problems(400, 403, 404, 500, 503)},
)
async def list_input_items(
    request: Request, response_id: str, after: After = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """The items that the request of a response brought."""
    service = service_of(request)
    await _refuse_unless_open(service, response_id)
    store = service.store
    rows = await store.responses.inputs(await store.responses.get(response_id))
    items = [item for row in rows for item in items_of(row)]
    return json_response(page(items, after=after, limit=limit, order=order))
