"""Routes of the page for models: the menu, and what can be done with each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from rallychat.cards import ModelCard, card
from rallychat.catalog import Model
from rallychat.chat import ChatService
from rallychat.errors import RallyChatError, SourceCancelled
from rallychat.ui import fragments
from rallychat.ui.door import PageRoute
from rallychat.ui.model_view import defaults_of, view_of
from rallychat.ui.views import size


class Chosen(BaseModel):
    """Which model; in the body, as ids of hub files hold slashes."""

    model_config = ConfigDict(extra="forbid")

    model: str


class Menu:
    """The model menu: every model's card, and the downloads started from it."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._fetching: set[asyncio.Task[None]] = set()
        self._failed: dict[str, str] = {}

    async def shown(self, using: str | None) -> dict[str, Any]:
        """Every card; that of the model in use also if the menu hides it."""
        service = self._service
        cards = await service.models()
        chosen = self._in_use(using)
        if all(each.model.id != chosen.id for each in cards):
            cards = [*cards, card(chosen, service.settings, service.pool, service.downloads)]
        default = self._in_use(None).id
        return {"using": chosen.id, "default": default, "models": [self._entry(each) for each in cards]}

    def load(self, name: str) -> str:
        """Fetches if needed, and loads, in the background."""
        model = self._service.named(name)
        self._failed.pop(model.id, None)
        self._service.prepare(model.id)
        return model.id

    def fetch(self, name: str) -> str:
        """Fetches in the background."""
        model = self._service.named(name)
        self._failed.pop(model.id, None)
        task = asyncio.create_task(self._fetch(model), name=f"download {model.id}")
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)
        return model.id

    async def _fetch(self, model: Model) -> None:
        try:
            await self._service.downloads.ensure(model)
        except SourceCancelled:
            return
        except RallyChatError as exc:
            self._failed[model.id] = str(exc)

    def _in_use(self, name: str | None) -> Model:
        try:
            return self._service.named(name)
        except RallyChatError:  # the conversation's model has left the catalog
            return self._service.resolve(None)

    def _entry(self, each: ModelCard) -> dict[str, Any]:
        noted = replace(each, note=each.note or self._failed.get(each.model.id, ""))
        view = view_of(noted)
        return {
            "id": view.id,
            "name": view.name,
            "state": view.state,
            "state_text": view.state_text,
            "fraction": view.fraction,
            "note": view.note,
            "window": each.model.window,
            "defaults": defaults_of(each, self._service.catalog.family(each.model)),
            "html": fragments.model_card(view),
        }


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    menu = Menu(service)

    @routes.get("/models")
    async def shown(using: str | None = None) -> dict[str, Any]:
        return await menu.shown(using)

    @routes.post("/models/load")
    async def load(chosen: Chosen) -> dict[str, Any]:
        return {"preparing": menu.load(chosen.model)}

    @routes.post("/models/download")
    async def download(chosen: Chosen) -> dict[str, Any]:
        return {"downloading": menu.fetch(chosen.model)}

    @routes.post("/models/cancel")
    async def cancel(chosen: Chosen) -> dict[str, Any]:
        model = service.named(chosen.model)
        await service.downloads.cancel(model.id)
        return {"cancelled": model.id}

    @routes.post("/models/unload")
    async def unload(chosen: Chosen) -> dict[str, Any]:
        await service.unload(service.named(chosen.model).id)
        return {"unloaded": chosen.model}

    @routes.post("/models/remove")
    async def remove(chosen: Chosen) -> dict[str, Any]:
        return {"freed": size(await service.remove(service.named(chosen.model).id))}

    return routes
