"""Error type -> HTTP status, in one table, and OpenAI's shape for the body. Knows no route."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rallychat import errors
from rallychat.api.validation import first_problem
from rallychat.messages import Failed, Finished

STATUS: Mapping[type[errors.RallyChatError], int] = {
    errors.RallyChatError: 500,
    errors.InvalidRequest: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.StorageFull: 403,
    errors.Busy: 429,
    errors.Full: 503,
    errors.Late: 503,
    errors.Stopping: 503,
    errors.Forbidden: 403,
    errors.LoginFailed: 401,
    errors.SettingsError: 500,
    errors.SourceError: 503,
    errors.Gated: 403,
    errors.Unsupported: 400,
    errors.StoreError: 503,
    errors.EngineError: 500,
    errors.EngineUnavailable: 503,
    errors.EngineInterrupted: 503,
    errors.EngineRefused: 400,
}
"""The nearest listed ancestor decides."""

RETRY_AFTER: Mapping[str, float] = {
    errors.Busy.code: 1,
    errors.Full.code: 5,
    errors.NoNetwork.code: 30,
    errors.StoreError.code: 5,
    errors.StoreUnavailable.code: 2,
    errors.EngineUnavailable.code: 5,
    errors.EngineInterrupted.code: 1,
}
"""Seconds to wait where the error itself does not say; codes not listed are not worth a second try."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

LATER = 60.0
"""Seconds to wait after a 429 or 503 that nothing is known of, and that a client should not repeat by itself."""
GIVEN_UP = frozenset({errors.Late.code})
"""Who asked wants to hear of it, not to wait once more."""

TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

CODES: Mapping[int, str] = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}

INTERNAL = "Something went wrong inside RallyChat; its log says what, under this response's X-Request-Id."


_PLACE = re.compile(r"(?:The conversation database )?(?:postgresql|/|[A-Za-z]:\\)\S*[^\s.,:]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as a client sees it. `retry_after` is in seconds."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: float | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """When to come back. OpenAI's clients retry 409, 429 and 5xx by themselves unless told not to."""
        if self.retry_after is None and self.status not in (409, 429) and self.status < 500:
            return {}
        again = self.retry_after is not None and self.code not in GIVEN_UP
        told = {"x-should-retry": str(again).lower()}
        if self.retry_after is not None or self.status in (429, 503):
            told["retry-after"] = str(max(1, math.ceil(self.retry_after or LATER)))
        return told

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The error as a whole response."""
        return Response(
            orjson.dumps(self.body()),
            self.status,
            {**self.headers(), **(headers or {})},
            "application/json",
        )


CUT_OFF = Problem(503, "The answer was cut off: the model or the server is stopping.", "interrupted", None, 1)


class Refusal(Exception):
    """A problem found before anything was sent; answered with its status."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(exc: errors.RallyChatError) -> Problem:
    """What a client sees of one of our errors."""
    status = next(STATUS[cls] for cls in type(exc).__mro__ if cls in STATUS)
    retry_after = exc.retry_after if isinstance(exc, errors.Busy) else RETRY_AFTER.get(exc.code)
    if isinstance(exc, errors.NotFound):
        param = "model" if exc.kind == "model" else None
        return Problem(status, _clipped(str(exc)), f"{exc.kind}_not_found", param)
    if type(exc) is errors.RallyChatError:
        return Problem(status, INTERNAL, exc.code)
    param = exc.param if isinstance(exc, errors.InvalidRequest) else None
    said = without_places(str(exc)) if isinstance(exc, errors.StoreError) else str(exc)
    return Problem(status, _clipped(said), exc.code, param, retry_after)


def without_places(said: str) -> str:
    """What an error of the store says, but not where the store is: that is for the log and the command line."""
    hidden = _PLACE.sub("the database", said)
    return hidden[:1].upper() + hidden[1:]


def problem_of_end(end: Failed | Finished, *, prompt: str) -> Problem | None:
    """What a client sees of a turn that failed; None if its answer is complete.

    Args:
        prompt: the field that is too long when the window overflows.
    """
    if isinstance(end, Finished):
        return None if end.reason in ("stop", "length") else CUT_OFF
    return _problem_of_failed(end, prompt)


def _problem_of_failed(failed: Failed, prompt: str) -> Problem:
    status = _STATUS_OF_CODE.get(failed.code, 500)
    if failed.code not in _STATUS_OF_CODE or failed.code == errors.RallyChatError.code:
        return Problem(500, INTERNAL, errors.RallyChatError.code)
    message = f"{failed.message} ({failed.hint})" if failed.hint else failed.message
    if failed.code in (errors.StoreError.code, errors.StoreUnavailable.code):
        message = without_places(message)
    param = prompt if failed.code == errors.ContextOverflow.code else None
    retry_after = failed.retry_after if failed.retry_after is not None else RETRY_AFTER.get(failed.code)
    return Problem(status, _clipped(message), failed.code, param, retry_after)


def install(app: FastAPI) -> None:
    """Turns every error raised in a route into OpenAI's shape."""
    app.add_exception_handler(errors.RallyChatError, _on_ours)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OSError, _on_the_disk)


async def _on_ours(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.RallyChatError)
    return problem_of(exc).response()


async def _on_refusal(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    return exc.problem.response()


async def _on_the_disk(_: Request, exc: Exception) -> Response:
    if not isinstance(exc, OSError) or exc.errno not in _FULL:
        raise exc
    return problem_of(errors.StoreError("There is no room left on the server's disk.")).response()


async def _on_validation(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    message, code, param = first_problem(exc.errors())
    return Problem(400, message, code, param).response()


async def _on_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return http_problem(exc.status_code, str(exc.detail), request.scope).response(exc.headers)


def http_problem(status: int, detail: str, scope: Mapping[str, Any]) -> Problem:
    """A status raised by the framework or a middleware, said in one sentence."""
    route = f"{scope.get('method', '')} {_clipped(str(scope.get('path', '')), 200)}"
    said = {404: f"There is no route {route}.", 405: f"{route} is not possible; see the Allow header."}
    return Problem(status, said.get(status, detail), CODES.get(status, "http_error"))


def _clipped(text: str, limit: int = 1000) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _tree(cls: type[errors.RallyChatError]) -> list[type[errors.RallyChatError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _tree(child))]


_STATUS_OF_CODE: Mapping[str, int] = {
    cls.code: next(STATUS[up] for up in cls.__mro__ if up in STATUS) for cls in _tree(errors.RallyChatError)
}
