"""What may be asked: what is obeyed, what is harmless, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rallychat.api.schemas import ACCEPTED_ONLY, ChatCompletionRequest, CompletionRequest
from rallychat.catalog import Sampling
from rallychat.messages import Message, Reasoning, Text
from tests.api_world import chat, client, scripted

USER = {"role": "user", "content": "Hi"}

HARMLESS: dict[str, list[Any]] = {
    "n": [1, None],
    "tools": [[], None],
    "tool_choice": ["none", "auto", None],
    "functions": [[], None],
    "function_call": ["none", "auto", None],
    "response_format": [{"type": "text"}, None],
    "logprobs": [False, None],
    "top_logprobs": [0, None],
    "logit_bias": [{}, None],
    "presence_penalty": [0, 0.0, None],
    "frequency_penalty": [0, 0.0, None],
    "modalities": [["text"], None],
    "audio": [None],
    "prediction": [None],
    "reasoning_effort": [None],
    "verbosity": ["medium", None],
    "web_search_options": [None],
    "moderation": [None],
    "prompt_cache_options": [None],
    "service_tier": ["auto", "default", None],
    "store": [False, None],
}
REFUSED: dict[str, list[Any]] = {
    "n": [0, 2, "1", 1.5],
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["required", {"type": "function"}],
    "functions": [[{"name": "f"}]],
    "function_call": [{"name": "f"}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "text"],
    "logprobs": [True],
    "top_logprobs": [1],
    "logit_bias": [{"1": 5}],
    "presence_penalty": [0.5, -1],
    "frequency_penalty": [0.5],
    "modalities": [["text", "audio"], ["audio"], []],
    "audio": [{"voice": "alloy", "format": "wav"}],
    "prediction": [{"type": "content", "content": "x"}],
    "reasoning_effort": ["low"],
    "verbosity": ["high"],
    "web_search_options": [{}],
    "moderation": [{"model": "omni-moderation-latest"}],
    "prompt_cache_options": [{"mode": "explicit"}],
    "service_tier": ["flex"],
    "store": [True],
}
OF_COMPLETIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "echo": ([False, None], [True]),
    "best_of": ([1, None], [2]),
    "suffix": ([None], ["x"]),
    "logprobs": ([None], [0, 3]),
}


def test_every_field_that_is_refused_by_name_has_its_examples() -> None:
    assert HARMLESS.keys() == REFUSED.keys()
    assert HARMLESS.keys() | OF_COMPLETIONS.keys() == ACCEPTED_ONLY.keys()
    assert HARMLESS.keys() <= ChatCompletionRequest.model_fields.keys()
    assert OF_COMPLETIONS.keys() <= CompletionRequest.model_fields.keys()


async def test_values_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    app, service = scripted(tmp_path)
    async with client(app) as http:
        for field, values in HARMLESS.items():
            for value in values:
                response = await http.post("/v1/chat/completions", json=chat(**{field: value}))
                assert response.status_code == 200, (field, value, response.text)
        for field, (values, _) in OF_COMPLETIONS.items():
            for value in values:
                response = await http.post("/v1/completions", json={"prompt": "x", field: value})
                assert response.status_code == 200, (field, value, response.text)
    assert {asked[2] for asked in service.asked} == {Sampling(), Sampling(max_tokens=16)}


async def test_values_that_would_need_something_we_lack_are_refused_by_name(tmp_path: Path) -> None:
    app, service = scripted(tmp_path)
    async with client(app) as http:
        for field, values in REFUSED.items():
            for value in values:
                response = await http.post("/v1/chat/completions", json=chat(**{field: value}))
                error = response.json()["error"]
                assert (response.status_code, error["param"], error["code"]) == (
                    400,
                    field,
                    "unsupported_parameter",
                )
                assert error["message"] == f"'{field}' is not supported: {ACCEPTED_ONLY[field]}."
        for field, (_, values) in OF_COMPLETIONS.items():
            for value in values:
                response = await http.post("/v1/completions", json={"prompt": "x", field: value})
                assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert service.asked == []


async def test_what_official_clients_add_by_themselves_is_accepted(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    more: dict[str, Any] = {
        "user": "u1",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "parallel_tool_calls": True,
        "stream": False,
        "stream_options": None,
    }
    async with client(app) as http:
        response = await http.post(
            "/v1/chat/completions", json=chat(**more), headers={"authorization": "Bearer x"}
        )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({}, Sampling()),
        ({"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}, Sampling(0.0, 1.0, 0, 0.0)),
        ({"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"max_tokens": 7}, Sampling(max_tokens=7)),
        ({"max_completion_tokens": 7}, Sampling(max_tokens=7)),
        ({"max_tokens": 7, "max_completion_tokens": 5}, Sampling(max_tokens=5)),
        ({"seed": 0}, Sampling(seed=0)),
        ({"seed": -1}, Sampling(seed=2**32 - 2)),
        ({"seed": 2**32 - 1}, Sampling(seed=0)),
        ({"seed": 2**63 - 1}, Sampling(seed=(2**63 - 1) % (2**32 - 1))),
        ({"stop": "a"}, Sampling(stop=("a",))),
        ({"stop": ["a", "b"]}, Sampling(stop=("a", "b"))),
        ({"stop": []}, Sampling(stop=())),
    ],
)
async def test_sampling_reaches_the_service(
    tmp_path: Path, asked: dict[str, Any], sampling: Sampling
) -> None:
    app, service = scripted(tmp_path)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(**asked))
    assert response.status_code == 200, response.text
    assert [each[2] for each in service.asked] == [sampling]


async def test_messages_reach_the_service_as_they_were_meant(tmp_path: Path) -> None:
    app, service = scripted(tmp_path)
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": "c",
            "reasoning_content": "r",
            "refusal": None,
            "audio": None,
            "annotations": [],
            "tool_calls": None,
            "function_call": None,
        },
        {"role": "user", "content": ""},
    ]
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    assert service.asked[0][0] == [
        Message.of("system", "Be brief."),
        Message.of("user", "ab"),
        Message("assistant", (Reasoning("r"), Text("c"))),
        Message.of("user", ""),
    ]


@pytest.mark.parametrize(
    ("prompt", "reached"),
    [("abc", "abc"), ([1, 2], [1, 2]), (["abc"], "abc"), ([[1, 2]], [1, 2])],
)
async def test_a_prompt_is_text_or_ids_or_a_list_of_one(tmp_path: Path, prompt: Any, reached: Any) -> None:
    app, service = scripted(tmp_path)
    async with client(app) as http:
        response = await http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 200
    assert service.asked == [(reached, "echo", Sampling(max_tokens=16))]


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        (
            {"role": "tool", "content": "x", "tool_call_id": "t"},
            "messages[0].role",
            "'tool' is not supported",
        ),
        ({"role": "function", "content": "x"}, "messages[0].role", "'function' is not supported"),
        ({"role": "robot", "content": "x"}, "messages[0].role", "must be 'system'"),
        ({"role": None, "content": "x"}, "messages[0]", "an object with a 'role'"),
        ({"content": "x"}, "messages[0]", "an object with a 'role'"),
        ("x", "messages[0]", "an object with a 'role'"),
        ({"role": "user"}, "messages[0].content", "missing"),
        ({"role": "user", "content": None}, "messages[0].content", "a string or a list of text parts"),
        ({"role": "user", "content": []}, "messages[0].content", "must not be empty"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]", "must be an object"),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            },
            "messages[0].content[1].type",
            "'image_url' parts are not supported",
        ),
        ({"role": "user", "content": "x", "mood": "good"}, "messages[0].mood", "not a parameter"),
        ({"role": "user", "content": "x", "<user>": 1}, "messages[0].<user>", "not a parameter"),
        ({"role": "assistant", "content": "x"}, "messages", "cannot be continued"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{}]},
            "messages[0].tool_calls",
            "must not have more than 0",
        ),
    ],
)
async def test_a_message_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, message: Any, param: str, says: str
) -> None:
    app, service = scripted(tmp_path)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json={"messages": [message]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]
    assert service.asked == []
