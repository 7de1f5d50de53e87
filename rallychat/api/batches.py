"""/v1/batches: files of requests, answered on idle capacity."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rallychat.api.files import LATEST, SOONEST
from rallychat.api.idempotency import IdempotencyKey, StatefulRoute
from rallychat.api.responses.pages import After, Limit, listed
from rallychat.api.responses.requests import Metadata
from rallychat.api.routing import json_response, problems
from rallychat.api.schemas import Asked
from rallychat.api.serving import service_of
from rallychat.store import StoredBatch

if TYPE_CHECKING:
    from rallychat.batches import BatchRunner

WINDOW: Final = timedelta(hours=24)
TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class ExpiresAfter(Asked):
    """When results go."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SOONEST, le=LATEST)


class BatchRequest(Asked):
    """Body of `POST /v1/batches`."""

    input_file_id: str = Field(min_length=1, max_length=100, description="A file uploaded for a batch.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"] = Field(
        description="Where each line leads."
    )
    completion_window: Literal["24h"] = Field(description="What is not answered by then expires.")
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = Field(None, description="When the results go by themselves.")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BatchErrorOut(_Answer):
    """What is wrong with the input; `line` counts from 1."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(_Answer):
    """All that is wrong."""

    object: Literal["list"]
    data: list[BatchErrorOut]


class RequestCounts(_Answer):
    """How far it is."""

    total: int
    completed: int
    failed: int


class InputDetails(_Answer):
    """Of the prompts."""

    cached_tokens: int


class OutputDetails(_Answer):
    """Of the answers."""

    reasoning_tokens: int


class BatchUsage(_Answer):
    """What all of it cost, in tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchOut(_Answer):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    model: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(_Answer):
    """Batches, a page of them."""

    object: Literal["list"]
    data: list[BatchOut]
    first_id: str
    last_id: str
    has_more: bool


router = APIRouter(route_class=StatefulRoute, tags=["batches"])
_ONE = "/v1/batches/{batch_id}"
_READ = problems(400, 403, 404, 500, 503)


@router.post(
    "/v1/batches",
    response_model=None,
    responses={200: {"model": BatchOut}, **problems(400, 403, 404, 409, 413, 415, 500, 503)},
)
async def create_batch(
    request: Request, asked: BatchRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Begins a batch. Its lines are looked at first, all of them: what is wrong is in its `errors`."""
    later = asked.output_expires_after
    made = await service_of(request).store.batches.create(
        input_file_id=asked.input_file_id,
        endpoint=asked.endpoint,
        completion_window=asked.completion_window,
        lives=WINDOW,
        metadata=asked.metadata,
        output_expires_after=later.seconds if later else None,
    )
    runner_of(request).wake()
    return json_response(described(made))


@router.get("/v1/batches", response_model=None, responses={200: {"model": BatchList}, **_READ})
async def list_batches(request: Request, after: After = None, limit: Limit = 20) -> Response:
    """Batches, the newest first."""
    found = await service_of(request).store.batches.list(limit=limit + 1, after=after)
    return json_response(listed([described(one) for one in found[:limit]], more=len(found) > limit))


@router.get(_ONE, response_model=None, responses={200: {"model": BatchOut}, **_READ})
async def retrieve_batch(request: Request, batch_id: str) -> Response:
    """One batch, and how far it is."""
    return json_response(described(await service_of(request).store.batches.get(batch_id)))


@router.post(
    f"{_ONE}/cancel",
    response_model=None,
    responses={200: {"model": BatchOut}, **problems(400, 403, 404, 409, 500, 503)},
)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Ends a batch; what is answered by then is in its files."""
    found = await service_of(request).store.batches.cancel(batch_id)
    runner_of(request).wake()
    return json_response(described(found))


def runner_of(request: Request) -> BatchRunner:
    """Who runs this server's batches."""
    return cast("BatchRunner", request.app.state.batches)


def described(batch: StoredBatch) -> dict[str, Any]:
    """OpenAI's batch object."""
    times = {f"{name}_at": _seconds(getattr(batch, f"{name}_at")) for name in ("created", "expires", *TIMES)}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": list(batch.errors)} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "model": batch.model,
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": None if batch.usage is None else _usage(batch.usage),
        "metadata": None if batch.metadata is None else dict(batch.metadata),
    }


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["input_tokens"],
        "input_tokens_details": {"cached_tokens": usage["cached_tokens"]},
        "output_tokens": usage["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage["reasoning_tokens"]},
        "total_tokens": usage["input_tokens"] + usage["output_tokens"],
    }


def _seconds(at: Any) -> int | None:
    return None if at is None else int(at.timestamp())
