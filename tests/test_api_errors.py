"""Every error has a status and OpenAI's shape, and nothing unexpected is told to strangers."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from rallychat import errors
from rallychat.api import create_app
from rallychat.api.errors import Problem, problem_of, problem_of_end
from rallychat.chat import ChatService
from rallychat.messages import Event, Failed, Finished, TextDelta
from rallychat.runs import failure
from tests.api_world import STARTED, Scripted, chat, client, scripted, settings

EXAMPLES: list[tuple[errors.RallyChatError, int, str, str | None]] = [
    (errors.InvalidRequest("No.", param="x"), 400, "invalid_request", "x"),
    (errors.ContextOverflow(needed=9, window=8), 400, "context_length_exceeded", "messages"),
    (errors.TemplateError("No."), 400, "template_error", None),
    (errors.NotFound("model", "m"), 404, "model_not_found", "model"),
    (errors.NotFound("run", "r"), 404, "run_not_found", None),
    (errors.Conflict("No."), 409, "conflict", None),
    (errors.Busy("Full.", retry_after=2.5), 429, "queue_full", None),
    (errors.Late("No.", retry_after=2.5), 503, "queue_timeout", None),
    (errors.SettingsError("No."), 500, "settings_error", None),
    (errors.SourceError("No."), 503, "download_failed", None),
    (errors.NoNetwork("No."), 503, "no_network", None),
    (errors.Gated("No."), 403, "gated_model", None),
    (errors.DiskFull("No."), 503, "disk_full", None),
    (errors.StoreError("No."), 503, "store_error", None),
    (errors.EngineError("No."), 500, "engine_error", None),
    (errors.EngineUnavailable("No."), 503, "engine_unavailable", None),
    (errors.EngineInterrupted("No."), 503, "engine_interrupted", None),
    (errors.EngineRefused("No."), 400, "engine_refused", None),
]


@pytest.mark.parametrize(("error", "status", "code", "param"), EXAMPLES)
def test_an_error_has_its_status(
    error: errors.RallyChatError, status: int, code: str, param: str | None
) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code, problem.param) == (status, code, param)
    assert problem.message == str(error)


@pytest.mark.parametrize("error", [each[0] for each in EXAMPLES if not isinstance(each[0], errors.NotFound)])
def test_an_error_of_a_turn_is_told_as_if_it_had_been_raised(error: errors.RallyChatError) -> None:
    raised, told = problem_of(error), problem_of_end(failure(error), prompt="messages")
    assert told is not None
    assert (told.status, told.code, told.message) == (raised.status, raised.code, raised.message)
    assert told.headers() == raised.headers()


@pytest.mark.parametrize("reason", ["cancelled", "interrupted", "error"])
def test_an_answer_that_was_cut_off_is_not_passed_off_as_complete(reason: Any) -> None:
    problem = problem_of_end(Finished(reason), prompt="messages")
    assert problem is not None
    assert problem.status == 503


@pytest.mark.parametrize(
    ("problem", "headers"),
    [
        (Problem(400, "", ""), {}),
        (Problem(409, "", ""), {"x-should-retry": "false"}),
        (Problem(500, "", ""), {"x-should-retry": "false"}),
        (Problem(503, "", "source_missing"), {"retry-after": "60", "x-should-retry": "false"}),
        (Problem(503, "", "queue_timeout", None, 8), {"retry-after": "8", "x-should-retry": "false"}),
        (Problem(429, "", "", None, 0.01), {"retry-after": "1", "x-should-retry": "true"}),
        (Problem(503, "", "", None, 5.1), {"retry-after": "6", "x-should-retry": "true"}),
    ],
)
def test_clients_are_told_whether_and_when_to_come_back(problem: Problem, headers: dict[str, str]) -> None:
    assert problem.headers() == headers


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/elsewhere", 404, "not_found"),
    ],
)
async def test_routes_and_methods_that_do_not_exist(
    tmp_path: Path, method: str, path: str, status: int, code: str
) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


WORDS = "".join(("a ", "secret"))
"""Not in one piece, since a traceback shows the line of code that raised."""


def breaking(folder: Path, *first: Event) -> Any:
    async def play() -> AsyncGenerator[Event, None]:
        for event in first:
            yield event
        raise KeyError(WORDS)

    service = Scripted(settings(folder), play)
    return create_app(cast(ChatService, service), service.settings)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fault_of_ours_is_logged_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with client(breaking(tmp_path)) as http:
        response = await http.post(
            "/v1/chat/completions", json=chat(stream=stream), headers={"x-request-id": "mine"}
        )
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
    assert response.json()["error"]["type"] == "server_error"
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage().splitlines()[0] for r in logged] == ["KeyError"]
    assert "secret" not in response.text + caplog.text


async def test_a_fault_of_ours_in_the_middle_of_a_stream_is_an_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(breaking(tmp_path, STARTED, TextDelta("Hel"))) as http:
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200
    assert '"code":"internal_error"' in response.text.split("\n\n")[-2]
    assert "secret" not in response.text + caplog.text
    assert "KeyError" in caplog.text


async def test_requests_are_logged_by_path_and_never_by_what_was_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app, _ = scripted(tmp_path)
    async with client(app, headers={"x-request-id": "me"}) as http:
        await http.post("/v1/chat/completions?key=hidden", json=chat("a secret"))
        await http.post(
            "/v1/chat/completions", content=b'{"a secret', headers={"content-type": "application/json"}
        )
        await http.post("/v1/chat/completions", json=chat(temperature="a secret"))
        await http.get("/v1/two%0Alines%1b")
    lines = [r.getMessage() for r in caplog.records if r.name == "rallychat.api.request_context"]
    assert [line.rpartition(" in ")[0] for line in lines] == [
        "POST /v1/chat/completions 200",
        "POST /v1/chat/completions 400",
        "POST /v1/chat/completions 400",
        "GET /v1/two\\nlines\\x1b 404",
    ]
    assert "secret" not in caplog.text
    assert "hidden" not in "".join(lines)


async def test_a_page_beside_the_api_gets_nothing_under_v1(tmp_path: Path) -> None:
    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("a page")(scope, receive, send)

    app, _ = scripted(tmp_path)
    app.mount("/", page)
    async with client(app) as http:
        answers = [
            await http.request(*route) for route in (("GET", "/v1/x"), ("PUT", "/v1/models"), ("GET", "/x"))
        ]
    assert [each.status_code for each in answers] == [404, 405, 200]
    assert answers[1].headers["allow"] == "GET"
    assert [each.headers["content-type"] for each in answers[:2]] == ["application/json"] * 2


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "There is no room left on the disk for /home/me/rallychat.db.",
            "There is no room left on the disk for the database.",
        ),
        ("The conversation database /home/me/x.db failed: odd.", "The database failed: odd."),
        ("postgresql://me@10.0.0.7/chats cannot be reached.", "The database cannot be reached."),
    ],
)
def test_nobody_who_asks_is_told_where_the_database_is(message: str, said: str) -> None:
    assert problem_of(errors.StoreError(message)).message == said
    failed = problem_of_end(Failed("store_error", message), prompt="input")
    assert failed is not None
    assert failed.message == said
