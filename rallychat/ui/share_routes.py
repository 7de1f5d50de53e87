"""A shared conversation: one page without scripts, cookies or a login, for whoever has the link."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from rallychat.chat import ChatService
from rallychat.errors import NotFound
from rallychat.ui import fragments
from rallychat.ui.transcript import model_name
from rallychat.ui.views import UNTITLED, MessageView

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex, nofollow",
}


def router(service: ChatService) -> APIRouter:
    """The route."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/share/{token}")
    async def shared(token: str) -> HTMLResponse:
        try:
            if not service.settings.sharing:
                raise NotFound("shared conversation", "this link")
            conversation, rows = await service.store.shares.read(token)
        except NotFound:
            page = fragments.shell("share", title="", views=None)
            return HTMLResponse(page, 404, headers=_HEADERS)
        views = [MessageView(message=row, model_name=model_name(service, row.model)) for row in rows]
        title = conversation.title or UNTITLED
        page = await asyncio.to_thread(fragments.shell, "share", title=title, views=views)
        return HTMLResponse(page, headers=_HEADERS)

    return routes
