"""The log: text or JSON, with the request in every line, the worker's lines among ours, and no word of a person."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rallychat import logs
from rallychat.api import create_app
from rallychat.chat import ChatService
from rallychat.identity import acting_as
from tests.api_world import chat, client, settings
from tests.batch_world import until

SECRET = "the-password-is-hunter2"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("rallychat")
    before = root.handlers[:], root.level, ours.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_one_request_is_followed_into_its_worker_by_its_id(
    tmp_path: Path, root: logging.Logger
) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    async with ChatService.open(settings(tmp_path)) as service:
        async with client(create_app(service, service.settings), headers={"x-request-id": "mine"}) as http:
            await http.post("/v1/chat/completions?key=hidden", json=chat(SECRET))
            await until(lambda: "rallychat.engines.serving" in stream.getvalue())  # the worker's line follows
    found = [line for line in lines(stream) if line.get("request_id") == "mine"]
    by = {line["logger"]: line for line in found}
    line = by["rallychat.api.request_context"]
    assert (line["level"], line["method"], line["path"], line["status"]) == (
        "INFO", "POST", "/v1/chat/completions", 200,
    )  # fmt: skip
    assert line["ms"] > 0
    assert line["user"] == logs.hashed("local")
    assert by["rallychat.engines.serving"]["message"].endswith(" ms")
    assert "hunter2" not in stream.getvalue()
    assert "hidden" not in stream.getvalue()


def test_a_line_of_text_names_the_request(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    token = logs.request_id.set("req_1")
    logging.getLogger("rallychat.x").info("said")
    logs.request_id.reset(token)
    assert stream.getvalue().endswith(" INFO rallychat.x [req_1]: said\n")


def test_libraries_speak_from_warnings_on(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("debug", stream=stream)
    logging.getLogger("uvicorn.error").info("quiet")
    logging.getLogger("uvicorn.error").warning("loud")
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == ["loud"]


def test_a_person_is_the_same_hash_in_each_line_and_never_the_id(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    for user in ("user_a", "user_a", "user_b"):
        with acting_as(user):
            logging.getLogger("rallychat.x").info("said")
    first, again, other = (line["user"] for line in lines(stream))
    assert first == again != other
    assert "user_a" not in stream.getvalue()


def test_a_worker_tells_its_exceptions_too(root: logging.Logger) -> None:
    said, stream = io.StringIO(), io.StringIO()
    logs.configure("info", "json", stream=said)
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("rallychat.engines.x").exception("it broke")
    logs.configure("info", "json", stream=stream)
    assert logs.relay(said.getvalue().encode())
    (line,) = lines(stream)
    assert line["level"] == "ERROR"
    assert line["message"].startswith("it broke\nTraceback")


@pytest.mark.parametrize(
    "line", [b"llama_model_load: loaded", b'{"level":', b'{"level":"LOUD"}', b'{"level":"INFO","x":1}', b""]
)
def test_what_a_native_library_prints_is_not_taken_for_a_line_of_ours(line: bytes) -> None:
    assert not logs.relay(line)
