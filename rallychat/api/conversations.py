"""/v1/conversations and their items. They are the conversations of the web page, too."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rallychat.api.idempotency import IdempotencyKey, StatefulRoute
from rallychat.api.manner import manner_of, taken_over
from rallychat.api.responses.answers import (
    ConversationDeleted,
    ConversationList,
    ConversationOut,
    ItemList,
    ItemOut,
)
from rallychat.api.responses.items import items_of, parts_of, place_of
from rallychat.api.responses.pages import After, Limit, Order, listed, page
from rallychat.api.responses.requests import (
    ConversationRequest,
    ConversationUpdate,
    ItemsRequest,
    messages_of,
)
from rallychat.api.routing import json_response, problems
from rallychat.api.serving import service_of
from rallychat.chat import ChatService
from rallychat.errors import NotFound
from rallychat.store import Conversation, Shelf, StoredMessage
from rallychat.titles import first_title

router = APIRouter(route_class=StatefulRoute, tags=["conversations"])
_ONE = "/v1/conversations/{conversation_id}"
_MADE = problems(400, 403, 404, 409, 413, 415, 500, 503)
_READ = problems(400, 403, 404, 500, 503)


@router.post("/v1/conversations", response_model=None, responses={200: {"model": ConversationOut}, **_MADE})
async def create_conversation(
    request: Request, asked: ConversationRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """A new conversation, with items if any are given, and answered as a persona if one is named."""
    service = service_of(request)
    said = messages_of(asked.items, param="items") if asked.items else []
    manner = asked.manner(service)
    if asked.persona is not None:
        manner = taken_over(await service.store.personas.get(asked.persona), manner, service)
    made = await service.store.create(title=first_title(said), metadata=asked.metadata, said=said, **manner)
    return json_response(described(made))


@router.get("/v1/conversations", response_model=None, responses={200: {"model": ConversationList}, **_READ})
async def list_conversations(
    request: Request,
    after: After = None,
    limit: Limit = 20,
    pinned: Annotated[bool | None, Query(description="Only those that are, or are not.")] = None,
    archived: Annotated[bool | None, Query(description="Only those that are, or are not.")] = None,
    folder: Annotated[str | None, Query(description="Only those of this folder.")] = None,
    deleted: Annotated[bool, Query(description="Those of the trash instead.")] = False,
) -> Response:
    """Conversations, the last active first. (OpenAI has no such route.)"""
    shelf = Shelf(pinned=pinned, archived=archived, folder=folder, trash=deleted)
    found = await service_of(request).store.library.list(shelf, limit=limit + 1, before=after)
    return json_response(listed([described(one) for one in found[:limit]], more=len(found) > limit))


@router.get(_ONE, response_model=None, responses={200: {"model": ConversationOut}, **_READ})
async def retrieve_conversation(request: Request, conversation_id: str) -> Response:
    """One conversation."""
    return json_response(described(await service_of(request).store.get(conversation_id)))


@router.post(_ONE, response_model=None, responses={200: {"model": ConversationOut}, **_MADE})
async def update_conversation(request: Request, conversation_id: str, asked: ConversationUpdate) -> Response:
    """Notes other metadata on it."""
    store = service_of(request).store
    return json_response(described(await store.update(conversation_id, metadata=asked.metadata)))


@router.delete(_ONE, response_model=None, responses={200: {"model": ConversationDeleted}, **_READ})
async def delete_conversation(
    request: Request,
    conversation_id: str,
    forever: Annotated[bool, Query(description="At once, without a way back.")] = False,
) -> Response:
    """Deletes it with all its messages and responses; what is being answered in it is stopped.

    It stands in the trash for `trash_days` days, unless it is to go `forever`.
    """
    await service_of(request).delete(conversation_id, forever=forever)
    return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post(f"{_ONE}/items", response_model=None, responses={200: {"model": ItemList}, **_MADE})
async def create_items(
    request: Request, conversation_id: str, asked: ItemsRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Puts items at the end of the branch in view. Nobody answers them."""
    service = service_of(request)
    said = messages_of(asked.items, param="items")
    await service.free_conversation(conversation_id, admitted=True)  # nobody answers
    rows = await service.store.items.append(conversation_id, said, title=first_title(said))
    return json_response(listed([item for row in rows for item in items_of(row)]))


@router.get(f"{_ONE}/items", response_model=None, responses={200: {"model": ItemList}, **_READ})
async def list_items(
    request: Request, conversation_id: str, after: After = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """The items of the branch in view."""
    rows = await service_of(request).store.path(conversation_id)
    items = [item for row in rows for item in items_of(row)]
    return json_response(page(items, after=after, limit=limit, order=order))


@router.get(f"{_ONE}/items/{{item_id}}", response_model=None, responses={200: {"model": ItemOut}, **_READ})
async def retrieve_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """One item, of whatever branch."""
    row = await row_of(service_of(request), conversation_id, item_id)
    found = next((item for item in items_of(row) if item["id"] == item_id), None)
    if found is None:
        raise NotFound("item", item_id)
    return json_response(found)


@router.delete(
    f"{_ONE}/items/{{item_id}}",
    response_model=None,
    responses={200: {"model": ConversationOut}, **problems(400, 403, 404, 409, 500, 503)},
)
async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """Takes an item out; what followed it follows what was before it."""
    store = service_of(request).store
    await store.get(conversation_id)
    place = place_of(item_id)
    try:
        await store.items.remove(conversation_id, place.message_id, which=lambda row: parts_of(row, place))
    except NotFound:
        raise NotFound("item", item_id) from None
    return json_response(described(await store.get(conversation_id)))


async def row_of(service: ChatService, conversation_id: str, item_id: str) -> StoredMessage:
    """The stored message that an item is, or is part of.

    Raises:
        NotFound: this conversation has no such item.
    """
    await service.store.get(conversation_id)
    place = place_of(item_id)
    try:
        row = await service.store.message(place.message_id)
    except NotFound:
        raise NotFound("item", item_id) from None
    if row.conversation_id != conversation_id:
        raise NotFound("item", item_id)
    return row


def described(conversation: Conversation) -> dict[str, Any]:
    """OpenAI's conversation object, and what we know besides."""
    deleted = conversation.deleted_at
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at.timestamp()),
        "metadata": dict(conversation.metadata),
        "title": conversation.title,
        "updated_at": int(conversation.updated_at.timestamp()),
        "pinned": conversation.pinned,
        "archived": conversation.archived,
        "folder": conversation.folder,
        "deleted_at": int(deleted.timestamp()) if deleted else None,
        **manner_of(conversation),
    }
