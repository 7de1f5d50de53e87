"""POST /v1/chat/completions: a stateless chat, as OpenAI defines it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from rallychat.api.answers import ChatCompletion
from rallychat.api.chunks import ChatAnswer
from rallychat.api.delivery import delivered
from rallychat.api.idempotency import IdempotencyKey, KeyedRoute
from rallychat.api.routing import EVENT_STREAM, problems
from rallychat.api.schemas import ChatCompletionRequest
from rallychat.api.serving import service_of
from rallychat.context.strategies import strategy_named
from rallychat.errors import InvalidRequest
from rallychat.messages import Event
from rallychat.pool import Priority
from rallychat.shelf import model_to_use
from rallychat.wishes import Asked

if TYPE_CHECKING:
    from rallychat.chat import ChatService

router = APIRouter(route_class=KeyedRoute)


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses={
        200: {
            "model": ChatCompletion,
            "content": EVENT_STREAM,
            "description": "The whole answer, or a stream.",
        },
        **problems(400, 403, 404, 409, 413, 415, 429, 500, 503),
    },
    tags=["completions"],
)
async def create_chat_completion(
    request: Request, asked: ChatCompletionRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers a chat. Nothing is stored; hanging up stops the generation."""
    events, answer = begin(service_of(request), asked)
    return await delivered(request.receive, events, answer, stream=bool(asked.stream))


def begin(
    service: ChatService,
    asked: ChatCompletionRequest,
    *,
    model: str | None = None,
    priority: Priority = Priority.CHAT,
) -> tuple[AsyncGenerator[Event, None], ChatAnswer]:
    """The events of an answer, and how it is written. Closing the events stops it.

    Args:
        model: answers in place of the one that is asked for.

    Raises:
        InvalidRequest, NotFound, Conflict: it cannot be answered.
    """
    if asked.messages[-1].role == "assistant":
        raise InvalidRequest(
            "The last message is the assistant's, and an answer cannot be continued here.",
            param="messages",
            hint="end with a user message, or continue the text with /v1/completions",
        )
    chosen = model_to_use(service, model or asked.model)
    messages = [message.message() for message in asked.messages]
    if (wanted := asked.context) is not None:
        strategy_named(asked.strategy or "")
    context = {} if wanted is None else {"context": Asked(**wanted)}
    events = service.complete(
        messages,
        model=chosen.id,
        sampling=asked.sampling(),
        priority=priority,
        patience=asked.timeout,
        **context,
    )
    return events, ChatAnswer(chosen.id, usage=asked.usage_wanted, context=wanted is not None)
