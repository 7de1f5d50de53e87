"""POST /v1/completions: the model continues a text or token ids, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from rallychat.api.answers import Completion
from rallychat.api.chunks import TextAnswer
from rallychat.api.delivery import delivered
from rallychat.api.idempotency import IdempotencyKey, KeyedRoute
from rallychat.api.routing import EVENT_STREAM, problems
from rallychat.api.schemas import CompletionRequest
from rallychat.api.serving import service_of
from rallychat.messages import Event
from rallychat.pool import Priority
from rallychat.shelf import model_to_use

if TYPE_CHECKING:
    from rallychat.chat import ChatService

router = APIRouter(route_class=KeyedRoute)


@router.post(
    "/v1/completions",
    response_model=None,
    responses={
        200: {"model": Completion, "content": EVENT_STREAM, "description": "The text, whole or streamed."},
        **problems(400, 403, 404, 409, 413, 415, 429, 500, 503),
    },
    tags=["completions"],
)
async def create_completion(
    request: Request, asked: CompletionRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Continues a prompt. Nothing is stored; hanging up stops the generation."""
    events, answer = begin(service_of(request), asked)
    return await delivered(request.receive, events, answer, stream=bool(asked.stream))


def begin(
    service: ChatService,
    asked: CompletionRequest,
    *,
    model: str | None = None,
    priority: Priority = Priority.CHAT,
) -> tuple[AsyncGenerator[Event, None], TextAnswer]:
    """As `chat_completions.begin`."""
    chosen = model_to_use(service, model or asked.model)
    prompt = asked.text_or_ids()
    events = service.complete_prompt(
        prompt, model=chosen.id, sampling=asked.sampling(), priority=priority, patience=asked.timeout
    )
    return events, TextAnswer(chosen.id, usage=asked.usage_wanted)
