"""Routes of the page for models: the menu, and what can be done with each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from rallychat.chat import ChatService
from rallychat.ui import bring_routes, review_routes
from rallychat.ui.door import PageRoute, noted, only_keeper
from rallychat.ui.menu import Menu
from rallychat.ui.review_routes import Named
from rallychat.ui.views import size


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    menu = Menu(service)
    routes.include_router(review_routes.router(service, menu))
    routes.include_router(bring_routes.router(service))

    @routes.get("/models")
    async def shown(using: str | None = None) -> dict[str, Any]:
        return await menu.shown(using)

    @routes.get("/menu")
    async def page(using: str | None = None) -> HTMLResponse:
        return HTMLResponse(await menu.page(using))

    @routes.get("/models/card")
    async def one(model: str) -> HTMLResponse:
        return HTMLResponse(menu.card(model))

    @routes.get("/models/state")
    async def state(model: str) -> HTMLResponse:
        return HTMLResponse(menu.state(model))

    @routes.post("/models/load")
    async def load(chosen: Named) -> dict[str, Any]:
        return {"preparing": menu.load(chosen.model)}

    @routes.post("/models/download")
    async def download(chosen: Named) -> dict[str, Any]:
        only_keeper()
        model_id = menu.fetch(chosen.model)
        await noted(service, "model.download", model_id)
        return {"downloading": model_id}

    @routes.post("/models/cancel")
    async def cancel(chosen: Named) -> dict[str, Any]:
        only_keeper()
        model = service.named(chosen.model)
        await service.downloads.cancel(model.id)
        return {"cancelled": model.id}

    @routes.post("/models/unload")
    async def unload(chosen: Named) -> dict[str, Any]:
        only_keeper()
        model = service.named(chosen.model)
        await service.unload(model.id)
        await noted(service, "model.unload", model.id)
        return {"unloaded": chosen.model}

    @routes.post("/models/remove")
    async def remove(chosen: Named) -> dict[str, Any]:
        only_keeper()
        model = service.named(chosen.model)
        freed = await service.remove(model.id)
        await noted(service, "model.remove", model.id)
        return {"freed": size(freed)}

    return routes
