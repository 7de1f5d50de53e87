"""The app factory: routes, what stands before them, and the shape of every error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

import rallychat
from rallychat.api import chat_completions, completions, conversations, errors, health, models
from rallychat.api.guard import BodyLimit, Guard
from rallychat.api.request_context import RequestContext
from rallychat.api.responses import routes as responses
from rallychat.settings import Settings

if TYPE_CHECKING:
    from rallychat.chat import ChatService

ROUTERS = (
    chat_completions.router,
    completions.router,
    responses.router,
    conversations.router,
    models.router,
    health.router,
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def create_app(service: ChatService, settings: Settings) -> FastAPI:
    """The HTTP API over an open service. The caller opens and closes the service.

    Pages may be mounted beside the routes; whatever begins with /v1 stays the API's.
    """
    # FastAPI's own documentation pages fetch scripts from the internet, so only the document is served
    app = FastAPI(title="RallyChat", version=rallychat.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.started_at = int(time.time())
    app.state.pending_keys = {}
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(_nothing_else)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestContext)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


_nothing_else = APIRouter()


@_nothing_else.api_route("/v1", methods=METHODS, include_in_schema=False)
@_nothing_else.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
async def unknown(request: Request) -> Response:
    """Says 404 or 405 in our shape, before a page mounted at "/" sees the request."""
    allowed: set[str] = set()
    for route in (route for router in ROUTERS for route in router.routes):
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL:
            allowed |= getattr(route, "methods", set())
    if allowed:
        raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})
    raise HTTPException(404)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document, without FastAPI's own validation error: here it is a 400 in OpenAI's shape."""
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operation in (each for path in document["paths"].values() for each in path.values()):
            operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
