"""The `response` object. All of it comes from the store, so that it is the same whoever asks, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rallychat import errors
from rallychat.api.chunks import context_of
from rallychat.api.responses.items import output_of, status_of
from rallychat.messages import ContextReport, Part, Queued, Usage
from rallychat.store import StoredMessage, StoredResponse

ResponseStatus = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]
UNKNOWN = "The answer could not be made."
_INVALID = (errors.InvalidRequest, errors.ContextOverflow, errors.TemplateError, errors.EngineRefused)
_LIMITED = (errors.Busy, errors.Full, errors.Late, errors.Limited)
_CODES: dict[str | None, str] = {
    **{kind.code: "invalid_prompt" for kind in _INVALID},
    **{kind.code: "rate_limit_exceeded" for kind in _LIMITED},
}
"""OpenAI's words for errors: asked again the first fails again, the second may not; all others are the server's."""


def response_object(
    stored: StoredResponse, *, waiting: bool = False, place: Queued | None = None
) -> dict[str, Any]:
    """A response as it is now; `waiting`: its answer is in the queue, at that place."""
    status = status_of_response(stored.answer)
    if waiting and status == "in_progress":
        status = "queued"
    answer = stored.answer
    created = answer.created_at.timestamp()
    took = answer.timings.total_ms / 1000 if answer.timings else 0
    return _described(
        stored,
        status=status,
        output=output_of(answer.id, answer.parts, status=status_of(answer)),
        completed=created + took if status == "completed" else None,
        error=error_of(answer) if status == "failed" else None,
        usage=answer.usage if answer.status == "complete" else None,
        report=answer.report if answer.status == "complete" else None,
        queue=queue_of(place) if status == "queued" and place is not None else None,
    )


def beginning(stored: StoredResponse) -> dict[str, Any]:
    """A response before its first word, whatever became of it."""
    status: ResponseStatus = "queued" if begins_queued(stored) else "in_progress"
    return _described(stored, status=status, queue=stored.request.get("queue"))


def begins_queued(stored: StoredResponse) -> bool:
    """Its events say that it waits, before they say that it is in progress."""
    return bool(stored.request["background"]) or stored.request.get("queue") is not None


def queue_of(place: Queued) -> dict[str, Any]:
    """Our extension: a place in line."""
    return {"position": place.position, "seconds": place.seconds}


def error_of(answer: StoredMessage) -> dict[str, str]:
    """Why an answer failed."""
    return {"code": _CODES.get(answer.error_code, "server_error"), "message": answer.error or UNKNOWN}


def status_of_response(answer: StoredMessage) -> ResponseStatus:
    """How far an answer is, in OpenAI's words."""
    if answer.status == "running":
        return "in_progress"
    match answer.finish_reason:
        case "stop" | None:
            return "completed"
        case "length":
            return "incomplete"
        case "cancelled":
            return "cancelled"
        case "interrupted" | "error":
            return "failed"


def _described(
    stored: StoredResponse,
    *,
    status: ResponseStatus,
    output: list[dict[str, Any]] | None = None,
    completed: float | None = None,
    error: dict[str, str] | None = None,
    usage: Usage | None = None,
    report: ContextReport | None = None,
    queue: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    request = stored.request
    conversation = request["conversation"]
    return {
        "id": stored.id,
        "object": "response",
        "created_at": int(stored.answer.created_at.timestamp()),
        "status": status,
        "background": request["background"],
        "completed_at": None if completed is None else int(completed),
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request["instructions"],
        "max_output_tokens": request["max_output_tokens"],
        "model": stored.answer.model,
        "output": output or [],
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "previous_response_id": request["previous_response_id"],
        "conversation": None if conversation is None else {"id": conversation},
        "reasoning": {"effort": None, "summary": None},
        "store": request["store"],
        "temperature": request["temperature"],
        "text": {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": [],
        "top_p": request["top_p"],
        "truncation": "auto" if request["store"] else "disabled",
        "usage": None if usage is None else usage_of(usage),
        "metadata": request["metadata"] or {},
        **{name: request.get(name) for name in ("user", "safety_identifier", "prompt_cache_key")},
        "context": None if report is None else context_of(report),
        "queue": queue,
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object of responses. What was evaluated is what the cache holds more than before."""
    evaluated = usage.prompt_tokens - usage.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": evaluated},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring parts of a kind made one: an answer from its deltas."""
    groups = itertools.groupby(parts, type)
    return tuple(kind("".join(part.text for part in group)) for kind, group in groups)
