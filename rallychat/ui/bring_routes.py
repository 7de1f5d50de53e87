"""Routes of the page to bring a model of one's own: a repository of the hub, or a path on this machine."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.catalog import Family
from rallychat.chat import ChatService
from rallychat.errors import FamilyNeeded, NotFound
from rallychat.messages import Message
from rallychat.templates import of_family
from rallychat.ui import fragments
from rallychat.ui.context_view import Stretch, stretches
from rallychat.ui.door import PageRoute, noted, only_owner

_SAID = ("Good morning!", "Good morning. How can I help you?", "What is the capital of France?")


class Brought(BaseModel):
    """A hub id or a path; `family` is the prompt format, for a model that does not say it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=4000)
    family: str | None = None


def preview_of(family: Family) -> list[Stretch]:
    """Two turns as a family writes them, its control tokens marked; empty if it has no template of its own."""
    if not family.template:
        return []
    head = [Message.of("system", family.default_system)] if family.default_system else []
    said = [Message.of("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(_SAID)]
    return stretches(of_family(family).render([*head, *said]).text)


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)

    @routes.post("/models/bring")
    async def bring(brought: Brought) -> dict[str, Any]:
        """The id of the model, or the question that has to be answered first."""
        only_owner(service.settings)
        try:
            model = await service.bring(brought.name.strip(), family=brought.family)
        except FamilyNeeded as exc:
            families = [service.catalog.families[each] for each in exc.families]
            named = [{"id": each.id, "name": each.name} for each in families if each.template]
            return {"model": None, "asks": exc.message, "families": named}
        await noted(service, "model.bring", model.id)
        return {"model": model.id}

    @routes.get("/families/preview")
    async def preview(family: str) -> HTMLResponse:
        if family not in service.catalog.families:
            raise NotFound("family", family)
        found = service.catalog.families[family]
        return HTMLResponse(await asyncio.to_thread(fragments.preview, found, preview_of(found)))

    return routes
