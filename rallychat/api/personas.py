"""/v1/personas: system prompt, model and parameters under a name. (OpenAI has no such routes.)"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from rallychat.api.idempotency import IdempotencyKey, StatefulRoute
from rallychat.api.manner import Manner, manner_of
from rallychat.api.responses.pages import listed
from rallychat.api.routing import ANY_OBJECT, json_response, problems
from rallychat.api.serving import service_of
from rallychat.store import Persona

router = APIRouter(route_class=StatefulRoute, tags=["personas"])
_ONE = "/v1/personas/{persona_id}"
_MADE = problems(400, 401, 403, 404, 409, 413, 415, 500, 503)
_READ = problems(401, 403, 404, 500, 503)


class PersonaRequest(Manner):
    """Body of `POST /v1/personas`."""

    name: Annotated[str, Field(min_length=1, max_length=100)]


class PersonaUpdate(PersonaRequest):
    """Body of `POST /v1/personas/{persona_id}`; what is left out stays."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = " "


@router.get("/v1/personas", response_model=None, responses={**ANY_OBJECT, **_READ})
async def list_personas(request: Request) -> Response:
    """All of them, by name."""
    return json_response(
        listed([persona_out(one) for one in await service_of(request).store.personas.list()])
    )


@router.post("/v1/personas", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def create_persona(
    request: Request, asked: PersonaRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """A new one."""
    return json_response(
        persona_out(await service_of(request).store.personas.create(**_given(request, asked)))
    )


@router.get(_ONE, response_model=None, responses={**ANY_OBJECT, **_READ})
async def retrieve_persona(request: Request, persona_id: str) -> Response:
    """One of them."""
    return json_response(persona_out(await service_of(request).store.personas.get(persona_id)))


@router.post(_ONE, response_model=None, responses={**ANY_OBJECT, **_MADE})
async def update_persona(request: Request, persona_id: str, asked: PersonaUpdate) -> Response:
    """Changes it; conversations that began with it stay as they are."""
    changed = await service_of(request).store.personas.update(persona_id, **_given(request, asked))
    return json_response(persona_out(changed))


@router.delete(_ONE, response_model=None, responses={**ANY_OBJECT, **_READ})
async def delete_persona(request: Request, persona_id: str) -> Response:
    """Forgets it."""
    await service_of(request).store.personas.delete(persona_id)
    return json_response({"id": persona_id, "object": "persona.deleted", "deleted": True})


def persona_out(persona: Persona) -> dict[str, Any]:
    """What a persona is."""
    return {
        "id": persona.id,
        "object": "persona",
        "name": persona.name,
        **manner_of(persona),
        "created_at": int(persona.created_at.timestamp()),
    }


def _given(request: Request, asked: PersonaRequest) -> dict[str, Any]:
    named = {"name": asked.name} if "name" in asked.model_fields_set else {}
    return named | asked.manner(service_of(request))
