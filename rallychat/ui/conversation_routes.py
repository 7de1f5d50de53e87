"""Routes of the page for one conversation: open, settings, delete."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from rallychat.catalog.types import SamplingFacts
from rallychat.chat import ChatService
from rallychat.store import Conversation
from rallychat.ui import fragments, transcript
from rallychat.ui.door import PageRoute
from rallychat.ui.views import UNTITLED


class Changes(BaseModel):
    """What may be changed of a conversation; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(default="", max_length=200)
    system: str = Field(default="", max_length=200_000)
    model: str | None = None
    sampling: SamplingFacts = SamplingFacts()


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    store = service.store

    @routes.get("/conversations/{conversation_id}")
    async def opened(conversation_id: str, reach: str | None = None) -> dict[str, Any]:
        """Everything to show it: facts, newest messages (back to `reach`), the answer that is growing."""
        conversation = await service.open_conversation(conversation_id)
        part = await transcript.newest(service, conversation_id, before=None, reach=reach)
        return {**await _facts(service, conversation), **await _page(part)}

    @routes.get("/conversations/{conversation_id}/state")
    async def state(conversation_id: str) -> dict[str, Any]:
        """Little, asked often: has something happened that this tab does not know?"""
        return await _facts(service, await store.get(conversation_id))

    @routes.get("/conversations/{conversation_id}/messages")
    async def messages(conversation_id: str, before: str) -> dict[str, Any]:
        return await _page(await transcript.newest(service, conversation_id, before=before))

    @routes.patch("/conversations/{conversation_id}")
    async def change(conversation_id: str, changes: Changes) -> dict[str, Any]:
        given: dict[str, Any] = {name: getattr(changes, name) for name in changes.model_fields_set}
        if "sampling" in given:
            given["sampling"] = changes.sampling.value()
        if given.get("model") is not None:
            given["model"] = service.named(changes.model).id
        return await _facts(service, await store.update(conversation_id, **given))

    @routes.delete("/conversations/{conversation_id}")
    async def delete(conversation_id: str) -> dict[str, Any]:
        await service.delete(conversation_id)
        return {"deleted": conversation_id}

    return routes


async def _page(part: transcript.Part) -> dict[str, Any]:
    """Rendering many messages for the first time takes a while, so the event loop is left free."""
    return {"html": await asyncio.to_thread(fragments.messages, part.views), "older": part.older}


async def _facts(service: ChatService, conversation: Conversation) -> dict[str, Any]:
    run = await service.answering(conversation)
    return {
        "id": conversation.id,
        "title": conversation.title or UNTITLED,
        "system": conversation.system,
        "model": conversation.model,
        "sampling": conversation.sampling.as_dict(),
        "tip": conversation.tip_id,
        "run": run.id if run else None,
    }
