"""Bad input is the sender's fault and is told so: never a 5xx, always OpenAI's shape, always short."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api_world import chat, echoing

ROUTES = ("/v1/chat/completions", "/v1/completions")
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder: Path = tmp_path_factory.mktemp("bad-input")
    async with echoing(folder, max_body_bytes=2_000_000) as (http, _):
        yield http


pytestmark = pytest.mark.asyncio(loop_scope="module")


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, checked for its shape."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert len(response.content) < 4000
    error: dict[str, Any] = body["error"]
    return error


BODIES = {
    "empty": (b"", 400),
    "blank": (b" \n", 400),
    "not JSON": (b"hello", 400),
    "half an object": (b'{"messages": [', 400),
    "two objects": (b"{}{}", 400),
    "a comment": (b"{} // really", 400),
    "a trailing comma": (b'{"prompt":"x",}', 400),
    "single quotes": (b"{'prompt':'x'}", 400),
    "a byte order mark": (b'\xef\xbb\xbf{"prompt":"x"}', 400),
    "UTF-16": ('{"prompt":"x"}'.encode("utf-16"), 400),
    "broken UTF-8": (b'{"prompt":"\xff\xfe"}', 400),
    "half a UTF-8 character": (b'{"prompt":"\xe2\x82"}', 400),
    "an overlong UTF-8 character": (b'{"prompt":"\xc0\xaf"}', 400),
    "a surrogate in UTF-8": (b'{"prompt":"\xed\xa0\x80"}', 400),
    "a lone high surrogate": (b'{"prompt":"\\ud800"}', 400),
    "a lone low surrogate": (b'{"prompt":"\\udc00"}', 400),
    "a lone surrogate as a key": (b'{"\\ud800":1}', 400),
    "a bare NUL": (b'{"prompt":"\x00"}', 400),
    "only NULs": (b"\x00" * 1000, 400),
    "null": (b"null", 400),
    "a number": (b"3", 400),
    "a string": (b'"hello"', 400),
    "a list": (b"[]", 400),
    "an empty object": (b"{}", 400),
    "NaN": (b'{"prompt":"x","temperature":NaN}', 400),
    "Infinity": (b'{"prompt":"x","temperature":Infinity}', 400),
    "-Infinity": (b'{"prompt":"x","temperature":-Infinity}', 400),
    "too large a float": (b'{"prompt":"x","temperature":1e999}', 400),
    "an int of 400 digits": (b'{"prompt":"x","seed":' + b"9" * 400 + b"}", 400),
    "an int of 5000 digits": (b'{"prompt":"x","max_tokens":' + b"9" * 5000 + b"}", 400),
    "100,000 open brackets": (b"[" * 100_000, 400),
    "100,000 nested lists": (b"[" * 100_000 + b"]" * 100_000, 400),
    "100,000 nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "nesting inside a field": (b'{"prompt":"x","logit_bias":{"a":' + b"[" * 1000 + b"]" * 1000 + b"}}", 400),
    "a very long key": (b'{"prompt":"x","' + b"k" * 1_000_000 + b'":1}', 400),
    "100,000 unknown keys": (orjson.dumps({f"k{n}": n for n in range(100_000)}), 400),
    "too large": (b" " * 2_000_001, 413),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_cannot_be_read(http: httpx.AsyncClient, route: str, name: str) -> None:
    body, status = BODIES[name]
    response = await http.post(route, content=body, headers=JSON)
    assert response.status_code == status
    error_of(response)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/xml",
        "é",
    ],
)
async def test_a_body_that_is_not_announced_as_json(http: httpx.AsyncClient, kind: str | None) -> None:
    headers: dict[bytes, bytes] = {} if kind is None else {b"content-type": kind.encode()}
    response = await http.post(ROUTES[0], content=orjson.dumps(chat()), headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x"]
)
async def test_a_body_that_is_announced_as_json(http: httpx.AsyncClient, kind: str) -> None:
    response = await http.post(ROUTES[0], content=orjson.dumps(chat()), headers={"content-type": kind})
    assert response.status_code == 200


CHATS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no messages": ({"messages": []}, 400, "messages"),
    "messages that are no list": ({"messages": {"role": "user", "content": "x"}}, 400, "messages"),
    "more messages than any window holds": (
        {"messages": [{"role": "user", "content": "x"}] * 10_001},
        400,
        "messages",
    ),
    "no such model": (chat(model="no-such-model"), 404, "model"),
    "a model that is a file": (chat(model="/etc/passwd"), 404, "model"),
    "a model that is a folder": (chat(model="."), 404, "model"),
    "a model that is on the hub": (chat(model="hub:a/b/c.gguf"), 404, "model"),
    "a model that is not a name": (chat(model="\x00\n../"), 404, "model"),
    "a model without a name": (chat(model=""), 400, "model"),
    "a model of a long name": (chat(model="m" * 100_000), 400, "model"),
    "a model that is a number": (chat(model=7), 400, "model"),
    "a model that nobody downloaded": (chat(model="qwen3-8b"), 409, None),
    "no tokens": (chat(max_tokens=0), 400, "max_tokens"),
    "fewer than no tokens": (chat(max_completion_tokens=-1), 400, "max_completion_tokens"),
    "half a token": (chat(max_tokens=0.5), 400, "max_tokens"),
    "more tokens than the window": (chat(max_tokens=1_000_000), 400, "messages"),
    "more tokens than there are": (chat(max_tokens=2**40), 400, "max_tokens"),
    "a prompt over the window": (chat("x " * 50_000), 400, "messages"),
    "too hot": (chat(temperature=2.1), 400, "temperature"),
    "colder than cold": (chat(temperature=-0.1), 400, "temperature"),
    "a temperature in words": (chat(temperature="1"), 400, "temperature"),
    "a temperature of true": (chat(temperature=True), 400, "temperature"),
    "no probability": (chat(top_p=0), 400, "top_p"),
    "a seed over 64 bits": (chat(seed=2**63 + 1), 400, "seed"),
    "a stop string of nothing": (chat(stop=""), 400, "stop"),
    "a stop string of nothing in a list": (chat(stop=["a", ""]), 400, "stop[1]"),
    "a very long stop string": (chat(stop="x" * 257), 400, "stop"),
    "1000 stop strings": (chat(stop=["x"] * 1000), 400, "stop"),
    "a stop number": (chat(stop=3), 400, "stop"),
    "a stream of 1": (chat(stream=1), 400, "stream"),
    "unknown stream options": (chat(stream=True, stream_options={"x": 1}), 400, "stream_options.x"),
    "a parameter nobody knows": (chat(temprature=1), 400, "temprature"),
}


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_that_cannot_be_answered(http: httpx.AsyncClient, name: str) -> None:
    body, status, param = CHATS[name]
    for stream in ({"stream": True}, {}):
        response = await http.post("/v1/chat/completions", json=stream | body)
        assert response.status_code == status
        assert error_of(response)["param"] == param


PROMPTS: dict[str, tuple[Any, str | None]] = {
    "nothing": ("", "prompt"),
    "no ids": ([], "prompt"),
    "a negative id": ([-1], "prompt[0]"),
    "an id of 40 bits": ([2**40], "prompt[0]"),
    "an id of half a token": ([1.5], "prompt[0]"),
    "ids and text": ([1, "a"], "prompt[1]"),
    "text and ids": (["a", 1], "prompt"),
    "several texts": (["a", "b"], "prompt"),
    "several lists": ([[1], [2]], "prompt"),
    "an empty list in a list": ([[]], "prompt[0]"),
    "null": (None, "prompt"),
    "an object": ({}, "prompt"),
    "too many ids": ([5] * 100_000, "prompt"),
    "too much text": ("x " * 50_000, "prompt"),
}


@pytest.mark.parametrize("name", PROMPTS)
async def test_a_prompt_that_cannot_be_continued(http: httpx.AsyncClient, name: str) -> None:
    prompt, param = PROMPTS[name]
    response = await http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_an_id_the_model_does_not_have(http: httpx.AsyncClient) -> None:
    for stream in (True, False):
        response = await http.post("/v1/completions", json={"prompt": [5, 100_000], "stream": stream})
        assert response.status_code == 400
        assert "100000" in error_of(response)["message"]


async def test_of_two_equal_keys_the_last_counts(http: httpx.AsyncClient) -> None:
    body = b'{"messages":[{"role":"user","content":"one","content":"two"}],"max_tokens":0,"max_tokens":50}'
    response = await http.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.json()["choices"][0]["message"]["content"] == "two"


@pytest.mark.parametrize(
    "text", ["\x00", "a\x00b", "\x1b[31m", "\u202e", "<|im_start|>", "\ufffd", "\U0010ffff", " "]
)
async def test_any_character_may_be_said(http: httpx.AsyncClient, text: str) -> None:
    response = await http.post("/v1/chat/completions", json=chat(text))
    assert response.json()["choices"][0]["message"]["content"] == text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20).filter(lambda text: text.isprintable()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abct", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "stop",
        "temperature",
        "max_tokens",
        "seed",
        "stream",
        "n",
        "tools",
        "suffix",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(route=st.sampled_from(ROUTES), wrong=st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3))
async def test_no_value_of_any_field_breaks_the_server(
    http: httpx.AsyncClient, route: str, wrong: dict[str, Any]
) -> None:
    good = chat() if "chat" in route else {"prompt": "Hi"}
    response = await http.post(route, content=orjson.dumps(good | wrong), headers=JSON)
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)
