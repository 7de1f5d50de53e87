"""Puts the page's routes, files and frame into an application."""

from __future__ import annotations

import gradio as gr
from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from rallychat.chat import ChatService
from rallychat.ui import (
    account_routes,
    batch_routes,
    context_routes,
    conversation_routes,
    list_routes,
    login_routes,
    model_routes,
    people_routes,
    share_routes,
    shell,
    turn_routes,
)
from rallychat.ui.page import STATIC, Page


def mount_page(app: FastAPI, service: ChatService) -> FastAPI:
    """See `rallychat.ui.mount`."""
    routes = APIRouter(prefix="/ui", include_in_schema=False)
    for each in (list_routes, conversation_routes, context_routes, turn_routes, model_routes):
        routes.include_router(each.router(service))
    app.include_router(routes)
    for each in (login_routes, account_routes, batch_routes, people_routes, share_routes):
        app.include_router(each.router(service), include_in_schema=False)
    app.mount("/ui/static", _Files(directory=STATIC))
    gr.mount_gradio_app(
        app,
        shell.build(),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        theme=shell.theme(),
    )
    frame = app.routes[-1]
    assert isinstance(frame, Mount)
    frame.app = Page(frame.app, chat_only=service.settings.chat_only_mode)
    return app


class _Files(StaticFiles):
    """Our scripts and styles: asked for again each time, so that two versions are never mixed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response
