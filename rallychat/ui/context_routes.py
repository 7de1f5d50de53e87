"""Routes of the page for the context of a conversation: see what the model saw, and say how it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.chat import ChatService
from rallychat.context.strategies import names
from rallychat.errors import NotFound
from rallychat.store import Conversation, StoredMessage
from rallychat.ui import context_view, fragments
from rallychat.ui.context_view import Keeping, keeping_of
from rallychat.ui.door import PageRoute


class Marked(BaseModel):
    """A person's word on a message; None takes it back."""

    model_config = ConfigDict(extra="forbid")

    mark: Literal["pin", "exclude"] | None


class Kept(BaseModel):
    """How a conversation's context is kept; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    strategy: str | None = None
    budget: int | None = Field(None, ge=64)
    elsewhere: bool | None = None


class Remembered(BaseModel):
    """What is to be remembered."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=100_000)
    version: int
    """The one that the page showed."""


class Version(BaseModel):
    """One version of the memory."""

    model_config = ConfigDict(extra="forbid")

    version: int


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    contexts = service.contexts

    @routes.get("/conversations/{conversation_id}/context")
    async def context(conversation_id: str) -> HTMLResponse:
        conversation = await service.store.get(conversation_id)
        path = await service.store.path(conversation_id)
        if not path:
            return HTMLResponse(fragments.context(None))
        keeping = await _keeping(service, conversation)
        inspection = await service.inspect(conversation_id)
        others = await _others(service, inspection.report.elsewhere if inspection.report else ())
        view = context_view.view_of(conversation_id, inspection, path, keeping, others)
        return HTMLResponse(await asyncio.to_thread(fragments.context, view))

    @routes.patch("/conversations/{conversation_id}/context")
    async def keep(conversation_id: str, kept: Kept) -> dict[str, Any]:
        conversation = await service.store.get(conversation_id)
        if "strategy" in kept.model_fields_set:
            conversation = await contexts.set_strategy(conversation_id, kept.strategy)
        if "budget" in kept.model_fields_set:
            conversation = await contexts.set_budget(conversation_id, kept.budget)
        if "elsewhere" in kept.model_fields_set:
            conversation = await contexts.set_elsewhere(conversation_id, kept.elsewhere)
        return {name: getattr(conversation, name) for name in Kept.model_fields}

    @routes.post("/messages/{message_id}/mark")
    async def mark(message_id: str, marked: Marked) -> dict[str, Any]:
        await contexts.mark(message_id, marked.mark)
        return {"mark": marked.mark}

    @routes.post("/conversations/{conversation_id}/memory")
    async def remember(conversation_id: str, remembered: Remembered) -> dict[str, Any]:
        text, seen = remembered.text, remembered.version
        return {"version": (await contexts.edit_memory(conversation_id, text, version=seen)).version}

    @routes.post("/conversations/{conversation_id}/memory/undo")
    async def undo(conversation_id: str, seen: Version) -> dict[str, Any]:
        left = await contexts.revert_memory(conversation_id, version=seen.version)
        return {"version": left.version if left else None}

    @routes.post("/conversations/{conversation_id}/memory/restore")
    async def restore(conversation_id: str, wanted: Version) -> dict[str, Any]:
        return {"version": (await contexts.restore_memory(conversation_id, wanted.version)).version}

    return routes


async def _others(service: ChatService, ids: Sequence[str]) -> list[StoredMessage]:
    """Messages of other conversations, but for those that are gone."""
    found = []
    for message_id in ids:
        with suppress(NotFound):
            found.append(await service.store.message(message_id))
    return found


async def _keeping(service: ChatService, conversation: Conversation) -> Keeping:
    model = service.resolve(conversation.model)
    usual = service.contexts.strategy(None, model).name
    return keeping_of(
        names(),
        chosen=conversation.strategy,
        usual=usual,
        budget=conversation.budget,
        elsewhere=conversation.elsewhere,
        usually_elsewhere=service.settings.elsewhere,
        memories=await service.contexts.memories(conversation.id),
        in_force=await service.contexts.memory(conversation.id),
    )
