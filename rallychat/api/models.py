"""GET /v1/models and /v1/models/{id}: what can be named as `model`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rallychat.api.answers import ModelList, ModelOut
from rallychat.api.routing import JsonRoute, json_response, problems
from rallychat.api.serving import service_of, started_at
from rallychat.cards import ModelCard, card
from rallychat.errors import NotFound

router = APIRouter(route_class=JsonRoute, tags=["models"])


@router.get(
    "/v1/models", response_model=None, responses={200: {"model": ModelList}, **problems(403, 500, 503)}
)
async def list_models(request: Request) -> Response:
    """The default model first, then the catalog's, with their states."""
    since, service = started_at(request), service_of(request)
    cards = await service.models()
    with suppress(NotFound):  # a default that does not exist is /readyz's to tell
        default = service.resolve(None)
        others = [each for each in cards if each.model.id != default.id]
        cards = [card(default, service.settings, service.pool, service.downloads), *others]
    return json_response({"object": "list", "data": [_described(each, since) for each in cards]})


@router.get(
    "/v1/models/{model_id:path}",
    response_model=None,
    responses={200: {"model": ModelOut}, **problems(403, 404, 500, 503)},
)
async def get_model(request: Request, model_id: str) -> Response:
    """One model, hidden ones included."""
    service = service_of(request)
    model = service.named(model_id)
    found = card(model, service.settings, service.pool, service.downloads)
    return json_response(_described(found, started_at(request)))


def _described(shown: ModelCard, since: int) -> dict[str, Any]:
    model = shown.model
    facts = {
        "name": model.name,
        "state": shown.state,
        "note": shown.note,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "license": model.license,
        "description": model.description,
        "url": model.url,
        "window": model.window,
        "size": model.size,
        "memory": shown.memory,
    }
    return {"id": model.id, "object": "model", "created": since, "owned_by": "rallychat", "rallychat": facts}
