"""How the context of a conversation is kept: its strategy and budget, its memory, pins and exclusions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from rallychat.api.conversations import row_of
from rallychat.api.idempotency import IdempotencyKey, StatefulRoute
from rallychat.api.responses.requests import Name
from rallychat.api.routing import ANY_OBJECT, json_response, problems
from rallychat.api.schemas import INT32, Asked
from rallychat.api.serving import service_of
from rallychat.store import Memory

router = APIRouter(route_class=StatefulRoute, tags=["conversations"])
_ONE = "/v1/conversations/{conversation_id}"
_MADE = problems(400, 401, 403, 404, 409, 413, 415, 500, 503)
_READ = problems(400, 401, 403, 404, 500, 503)


class Keeping(Asked):
    """Body of `PATCH /v1/conversations/{conversation_id}/context`; what is left out stays, null takes it back."""

    strategy: Name | None = None
    budget: Annotated[int, Field(ge=64, le=INT32)] | None = None
    elsewhere: bool | None = None


class Remembered(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/memory`."""

    text: Annotated[str, Field(max_length=100_000)]
    version: Annotated[int, Field(ge=1, le=INT32)] | None = None
    """The one in force that it was written from; where another is by now, nothing is changed."""


class Version(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/memory/restore`."""

    version: Annotated[int, Field(ge=1, le=INT32)]


class Marked(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/items/{item_id}/mark`; null takes a mark back."""

    mark: Literal["pin", "exclude"] | None


@router.get(f"{_ONE}/context", response_model=None, responses={**ANY_OBJECT, **_READ})
async def retrieve_context(request: Request, conversation_id: str) -> Response:
    """How it is kept short, every version of what is remembered of it, and what is pinned or excluded."""
    return await _told(request, conversation_id)


@router.patch(f"{_ONE}/context", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def keep_context(request: Request, conversation_id: str, asked: Keeping) -> Response:
    """Chooses strategy, budget and whether others are quoted, for all its answers from now on."""
    contexts = service_of(request).contexts
    if "strategy" in asked.model_fields_set:
        await contexts.set_strategy(conversation_id, asked.strategy)
    if "budget" in asked.model_fields_set:
        await contexts.set_budget(conversation_id, asked.budget)
    if "elsewhere" in asked.model_fields_set:
        await contexts.set_elsewhere(conversation_id, asked.elsewhere)
    return await _told(request, conversation_id)


@router.post(f"{_ONE}/memory", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def edit_memory(
    request: Request, conversation_id: str, asked: Remembered, idempotency_key: IdempotencyKey = None
) -> Response:
    """Says what is to be remembered in place of the memory in force, as a new version of it."""
    await service_of(request).contexts.edit_memory(conversation_id, asked.text, version=asked.version)
    return await _told(request, conversation_id)


@router.post(f"{_ONE}/memory/undo", response_model=None, responses={**ANY_OBJECT, **_READ, **problems(409)})
async def undo_memory(
    request: Request,
    conversation_id: str,
    version: Annotated[int, Query(ge=1, le=INT32)] | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Undoes the version in force: the one before holds again, or the older turns themselves.

    Where `version` is given and another one is in force by now, nothing is changed.
    """
    await service_of(request).contexts.revert_memory(conversation_id, version=version)
    return await _told(request, conversation_id)


@router.post(f"{_ONE}/memory/restore", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def restore_memory(
    request: Request, conversation_id: str, asked: Version, idempotency_key: IdempotencyKey = None
) -> Response:
    """Takes back that a version was undone."""
    await service_of(request).contexts.restore_memory(conversation_id, asked.version)
    return await _told(request, conversation_id)


@router.post(f"{_ONE}/items/{{item_id}}/mark", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def mark_item(request: Request, conversation_id: str, item_id: str, asked: Marked) -> Response:
    """Pins an item's message (it never leaves the prompt), excludes it (it never enters it), or neither."""
    service = service_of(request)
    row = await row_of(service, conversation_id, item_id)
    await service.contexts.mark(row.id, asked.mark)
    return await _told(request, conversation_id)


async def _told(request: Request, conversation_id: str) -> Response:
    service = service_of(request)
    conversation = await service.store.get(conversation_id)
    path, in_force = await service.store.view(conversation_id)
    said = {
        "object": "conversation.context",
        "conversation_id": conversation.id,
        "strategy": conversation.strategy,
        "budget": conversation.budget,
        "elsewhere": conversation.elsewhere,
        "pinned": [row.id for row in path if row.mark == "pin"],
        "excluded": [row.id for row in path if row.mark == "exclude"],
        "memory": in_force.version if in_force else None,
        "versions": [_version(memory) for memory in await service.contexts.memories(conversation_id)],
    }
    return json_response(said)


def _version(memory: Memory) -> dict[str, Any]:
    return {
        "version": memory.version,
        "kind": memory.kind,
        "text": memory.text,
        "until": memory.until,
        "covers": list(memory.covers),
        "by": memory.edited_by,
        "why": memory.why,
        "active": memory.active,
    }
