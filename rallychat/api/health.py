"""GET /healthz: the process answers. /readyz: a chat would be answered, or why not. /metrics: for Prometheus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from rallychat.api.answers import Check, Health, Readiness
from rallychat.api.errors import without_places
from rallychat.api.routing import JsonRoute, problems
from rallychat.api.serving import service_of
from rallychat.cards import card
from rallychat.errors import RallyChatError
from rallychat.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from rallychat.chat import ChatService

LOOK_AGAIN = 5.0
"""Seconds after which a server that is not ready may be."""
PATIENCE = 5.0
"""Seconds a check may take before it counts as failed."""

USABLE = frozenset({"ready", "loaded"})

router = APIRouter(route_class=JsonRoute, tags=["health"])


@router.get("/healthz", response_model=None, responses={200: {"model": Health}, **problems(403, 500)})
async def healthz() -> Response:
    """The process is alive."""
    return _json(Health(status="ok"))


@router.get(
    "/readyz",
    response_model=None,
    responses={
        200: {"model": Readiness},
        503: {"model": Readiness, "description": "Not ready; `detail` says why."},
        **problems(403, 500),
    },
)
async def readyz(request: Request) -> Response:
    """New turns are begun, the store can be read, and the default model is on disk or loaded."""
    service = service_of(request)
    store, model = await _store(service), _model(service)
    stopping = service.runs.stopping
    server = Check(ok=not stopping, detail="The server is stopping." if stopping else "")
    ready = server.ok and store.ok and model.ok
    said = Readiness(status="ready" if ready else "not_ready", server=server, store=store, model=model)
    response = _json(said, 200 if ready else 503)
    if not ready:
        response.headers["retry-after"] = f"{LOOK_AGAIN:.0f}"
    return response


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(403, 500)},
)
async def metrics(request: Request) -> Response:
    """Counts and times by model, for Prometheus; no user text."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE)


async def _store(service: ChatService) -> Check:
    try:
        async with asyncio.timeout(PATIENCE):
            await service.store.list(limit=1)
    except TimeoutError:
        return Check(ok=False, detail=f"The database did not answer within {PATIENCE:.0f} s.")
    except RallyChatError as exc:
        return Check(ok=False, detail=without_places(str(exc)))  # anybody may ask
    return Check(ok=True, detail="")


def _model(service: ChatService) -> Check:
    try:
        found = card(service.resolve(None), service.settings, service.pool, service.downloads)
    except RallyChatError as exc:
        return Check(ok=False, detail=str(exc))
    note = f": {found.note}" if found.note else "."
    detail = "" if found.state in USABLE else f"The default model '{found.model.id}' is {found.state}{note}"
    return Check(ok=not detail, detail=detail)


def _json(value: Health | Readiness, status: int = 200) -> Response:
    return Response(value.model_dump_json(), status, media_type="application/json")
