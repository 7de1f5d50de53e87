"""Routes of the page for the context of a conversation: see what the model saw, and say how it is kept."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.chat import ChatService
from rallychat.ui import fragments
from rallychat.ui.door import PageRoute
from rallychat.ui.inspecting import inspected


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
        view = await inspected(service, conversation_id)
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
