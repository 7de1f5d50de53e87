"""The app factory: routes, what stands before them, and the shape of every error."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

import rallychat
from rallychat.api import (
    batches,
    chat_completions,
    completions,
    conversations,
    errors,
    files,
    health,
    keeping,
    library,
    models,
    myself,
    people,
    personas,
)
from rallychat.api.batch_lines import BatchLines, Ward
from rallychat.api.errors import Problem, Refusal
from rallychat.api.gate import Gate
from rallychat.api.guard import BodyLimit, Guard
from rallychat.api.request_context import RequestContext
from rallychat.api.responses import routes as responses
from rallychat.api.routing import DESCRIPTIONS
from rallychat.api.scopes import is_open
from rallychat.batches import BatchRunner
from rallychat.settings import Network, Settings

if TYPE_CHECKING:
    from rallychat.chat import ChatService

ROUTERS = (
    chat_completions.router,
    completions.router,
    responses.router,
    library.router,
    library.imports,
    keeping.router,
    conversations.router,
    personas.router,
    files.uploads,
    files.router,
    batches.router,
    models.router,
    myself.router,
    people.router,
    health.router,
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def create_app(service: ChatService, settings: Settings) -> FastAPI:
    """The HTTP API over an open service. The caller opens and closes the service.

    Pages may be mounted beside the routes; whatever begins with /v1 stays the API's.
    """
    # FastAPI's own documentation pages fetch scripts from the internet, so only the document is served
    app = FastAPI(
        title="RallyChat", version=rallychat.__version__, docs_url=None, redoc_url=None, lifespan=_lifespan
    )
    app.state.service = service
    app.state.started_at = int(time.time())
    app.state.pending_keys = {}
    ward = Ward()
    app.state.batches = BatchRunner(
        service,
        lambda model: BatchLines(service, model=model, longest=settings.max_body_bytes, ward=ward).answer,
    )
    errors.install(app)
    for router in (*ROUTERS, _nothing_else):
        app.router.routes += (
            router.routes
        )  # as they are: `include_router` would build each of them a second time
    app.add_middleware(Gate, accounts=service.accounts, settings=settings)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, uploads=settings.max_file_bytes)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestContext)
    # uvicorn's: who asks, and over https or not, as a proxy that is believed says
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[*_believed(settings.trusted_proxies)])
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _believed(proxies: Iterable[Network]) -> Iterator[str]:
    """The networks; those of IPv4 also as a socket for both kinds of addresses shows them."""
    for network in proxies:
        yield str(network)
        if network.version == 4:
            yield f"::ffff:{network.network_address}/{96 + network.prefixlen}"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Batches run as long as the server does."""
    async with app.state.batches.running():
        yield


_nothing_else = APIRouter()
_UNKNOWN = {
    "description": DESCRIPTIONS[401],
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}


_LACKING = {
    "responses/input_tokens": "tokens are not counted beforehand; 'usage' of a response has them",
    "responses/compact": "the server itself keeps what it stores within the window",
}
"""Routes of OpenAI's whose paths fit others of ours."""


@_nothing_else.api_route("/v1", methods=METHODS, include_in_schema=False)
@_nothing_else.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
async def unknown(request: Request) -> Response:
    """Says 404 or 405 in our shape, before a page mounted at "/" sees the request."""
    if (why := _LACKING.get(request.path_params.get("path", ""))) is not None:
        raise Refusal(Problem(404, f"'{request.url.path}' is not supported: {why}.", errors.CODES[404]))
    allowed: dict[str, set[str]] = {}
    for route in (route for router in ROUTERS for route in router.routes):
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL and isinstance(route, Route):
            allowed.setdefault(route.path, set()).update(route.methods or ())
    if allowed:
        # "/v1/things/{name}" fits "/v1/things/search" as well: the path with the fewest names is meant.
        meant = min(allowed, key=lambda path: path.count("{"))
        raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed[meant]))})
    raise HTTPException(404)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The document, without FastAPI's own validation error: here it is a 400 in OpenAI's shape."""
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, operation in (
            (path, each) for path, them in document["paths"].items() for each in them.values()
        ):
            operation["responses"].pop("422", None)
            if not is_open(path):
                operation["responses"].setdefault("401", _UNKNOWN)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
