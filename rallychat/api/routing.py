"""How a route reads its body: as strict JSON (no NaN, no lone surrogates, no bottomless nesting)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rallychat.api.answers import ErrorBody

JSON_TYPES = frozenset({"application/json"})


class StrictRequest(Request):
    """A request whose JSON is parsed by orjson, which refuses what the standard library lets through."""

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            json.JSONDecodeError: FastAPI makes it a validation error.
        """
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route that takes nothing but JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler FastAPI calls."""
        handler = super().get_route_handler()
        takes_body = self.body_field is not None

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if takes_body and kind not in JSON_TYPES:
                raise HTTPException(415, "The body must be sent as Content-Type: application/json.")
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


EVENT_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
"""OpenAPI's description of a streamed answer: one chunk object after each `data: `, then `data: [DONE]`."""


NAMED_EVENTS = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["event", "data"],
        }
    }
}
"""The same of a stream whose events have names; `data` is the event as JSON, with the name as its `type`."""


ANY_OBJECT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}}
}
"""OpenAPI's description of an answer that is an object of our own."""


def json_response(said: object) -> Response:
    """What was said, as JSON."""
    return Response(orjson.dumps(said), media_type="application/json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors a route may answer with."""
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in statuses}


DESCRIPTIONS = {
    400: "The request cannot be used; `param` names the field.",
    401: "No API key, a wrong one, or (logging in) a wrong password.",
    403: "A foreign Host or Origin, what only an admin may do, or a model whose source wants a token.",
    404: "No such model, response, conversation or item.",
    405: "The path exists, the method does not.",
    409: "The state of the model, conversation or response does not allow this; or the idempotency key.",
    413: "The body is larger than `max_body_bytes`.",
    415: "The body is not `application/json`.",
    429: "The queue is full; see Retry-After.",
    500: "A fault of ours.",
    503: "The engine, the weights or the store cannot be used; see Retry-After.",
}
