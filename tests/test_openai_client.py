"""OpenAI's own Python client, unchanged, against a real server: answers, streams, errors, and hanging up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.live_server import Live, live

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, world"}]
ENDLESS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "!count 5000"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One slot: whoever keeps it keeps everybody else waiting."""
    with live(tmp_path_factory.mktemp("live"), slots=1, max_loaded=2) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0) as opened:
        yield opened


def test_models_are_listed_and_found(client: OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {"smollm2-135m-instruct", "slow"} <= listed
    assert client.models.retrieve("echo").id == "echo"


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HI)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == (
        "stop",
        "echo",
        "chat.completion",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_that_keeps_its_context_by_a_strategy_says_once_how(client: OpenAI, usage: bool) -> None:
    how: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    with client.chat.completions.create(
        model="echo", messages=HI, stream=True, extra_body={"strategy": "last_n"}, **how
    ) as stream:
        chunks: list[Any] = list(stream)
    said = [chunk for chunk in chunks if hasattr(chunk, "context")]
    assert [(chunk.context["strategy"], chunk.context["kept"]) for chunk in said] == [("last_n", ["0"])]
    assert said == [chunks[-1]]
    assert [choice.finish_reason for choice in chunks[-1].choices] == ([] if usage else ["stop"])


def test_usage_tells_what_was_thought(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HI)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_chat_streams(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="echo", messages=HI, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    *deltas, cost = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == "Hello, world"
    assert deltas[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in deltas if c.choices[0].finish_reason] == ["stop"]
    assert cost.usage is not None
    assert cost.choices == []


def test_the_client_s_own_stream_helper_reads_the_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=HI) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, world"


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HI).choices[0].message
    history = [*HI, answer.model_dump(), {"role": "user", "content": "And again"}]
    again = client.chat.completions.create(model="echo", messages=history)  # type: ignore[arg-type]
    assert again.choices[0].message.content == "And again"


def test_a_text_is_continued(client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="abc def", max_tokens=50)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc def", "stop")
    streamed = client.completions.create(model="echo", prompt=["abc def"], max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abc def"


def test_sampling_stop_and_limits_are_obeyed(client: OpenAI) -> None:
    create = client.chat.completions.create
    stopped = create(model="echo", messages=HI, stop=["wor"], temperature=0, seed=1, extra_body={"top_k": 1})
    assert stopped.choices[0].message.content == "Hello, "
    cut = create(model="echo", messages=HI, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 2


def test_errors_are_the_client_s_own_exceptions(client: OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-oops", messages=HI)
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as tools:
        create(model="echo", messages=HI, n=2)
    assert (tools.value.param, tools.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        create(model="echo", messages=HI, max_tokens=100_000, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.ConflictError):
        create(model="qwen3-8b", messages=HI)
    with pytest.raises(openai.PermissionDeniedError):
        create(model="echo", messages=HI, extra_headers={"Origin": "https://evil.example"})


def test_an_error_in_the_middle_of_a_stream_is_raised(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "!fail 5"}], stream=True
    )
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content
    with pytest.raises(openai.APIError, match="as asked"):
        list(stream)


async def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(tmp_path: Path) -> None:
    with live(tmp_path, slots=1, max_queue=1) as server:
        async with AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0
        ) as client:
            create = client.chat.completions.create
            asking = {
                asyncio.create_task(create(model="slow", messages=ENDLESS, max_tokens=4000)) for _ in range(3)
            }
            refused, others = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    with pytest.raises(openai.RateLimitError) as full:
        refused.pop().result()
    assert full.value.code == "queue_full"
    assert int(full.value.response.headers["retry-after"]) >= 1


def test_a_client_that_leaves_a_stream_frees_the_engine(client: OpenAI) -> None:
    for _ in range(3):
        with closing(client.chat.completions.create(model="slow", messages=ENDLESS, stream=True)) as stream:
            next(iter(stream))
    answer = client.chat.completions.create(model="slow", messages=HI)
    assert answer.choices[0].message.content == "Hello, world"


def test_a_client_that_leaves_without_streaming_frees_the_engine(client: OpenAI) -> None:
    hasty = client.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model="slow", messages=ENDLESS)
    answer = client.chat.completions.create(model="slow", messages=HI)
    assert answer.choices[0].message.content == "Hello, world"


async def test_the_asynchronous_client_works_the_same(server: Live) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0
    ) as client:
        answer = await client.chat.completions.create(model="echo", messages=HI)
        assert answer.choices[0].message.content == "Hello, world"
        stream = await client.chat.completions.create(model="echo", messages=HI, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nothing")


async def test_twenty_clients_that_vanish_leave_no_busy_slot(server: Live) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", timeout=120, max_retries=0
    ) as client:
        create = client.chat.completions.create
        asking = [asyncio.create_task(create(model="slow", messages=ENDLESS, stream=True)) for _ in range(20)]
        answered, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for task in answered:
            await task.result().close()
        hasty = client.with_options(timeout=0.5).chat.completions.create
        gone = await asyncio.gather(
            *(hasty(model="slow", messages=ENDLESS) for _ in range(20)), return_exceptions=True
        )
        assert {type(each) for each in gone} == {openai.APITimeoutError}
        answer = await create(model="slow", messages=HI)
    assert answer.choices[0].message.content == "Hello, world"
