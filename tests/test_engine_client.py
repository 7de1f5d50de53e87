from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import (
    CompletionRequest,
    Done,
    EngineEvent,
    EngineInfo,
    Piece,
    Prefill,
    Tokens,
)
from rallychat.errors import (
    Busy,
    ContextOverflow,
    EngineError,
    EngineInterrupted,
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    RallyChatError,
)
from tests.served import DONE, END, Answering, Asked, Served, chunk, event, reply, served, stream_head

OURS = EngineInfo(engine="llamacpp", window=64, slots=2, slot_affinity=True).model_dump()
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
EVENTS = (
    event({"choices": [], "prompt_progress": {"total": 3, "cached": 1, "processed": 3, "ms": 4.5}})
    + event({"choices": [{"index": 0, "text": "Grüß", "token_ids": [7], "finish_reason": None}]})
    + event({"choices": [{"index": 0, "text": " dich 🦜", "token_ids": [8, 9], "finish_reason": None}]})
    + event({"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "length"}]})
    + event({"choices": [], "usage": USAGE})
    + DONE
)
ANSWER = [Prefill(3, 1, 3, 4.5), Tokens("Grüß", (7,)), Tokens(" dich 🦜", (8, 9)), Done("length", 3, 2, 1)]


def worker(completion: Sequence[bytes]) -> Answering:
    """A worker of ours that answers every completion with these bytes."""
    return lambda asked: [reply(OURS)] if asked.path == "/info" else completion


async def answer(server: Served, **options: Any) -> list[EngineEvent]:
    request = CompletionRequest(**({"prompt": [1, 2, 3], "max_tokens": 2} | options))
    return [event async for event in client_of(server).generate(request)]


def client_of(server: Served, *, stall_timeout: float = 30) -> EngineClient:
    return EngineClient(base_url=server.url, stall_timeout=stall_timeout)


async def failure(completion: Sequence[bytes]) -> RallyChatError:
    async with served(worker(completion)) as server:
        with pytest.raises(RallyChatError) as caught:
            await answer(server)
    return caught.value


async def test_an_answer_is_prefill_tokens_and_done() -> None:
    async with served(worker([stream_head() + chunk(EVENTS) + END])) as server:
        assert await answer(server) == ANSWER


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, len(EVENTS) - 1), max_size=12), st.lists(st.integers(1, 900), max_size=12))
async def test_where_chunks_and_packets_are_split_changes_nothing(
    chunks: list[int], packets: list[int]
) -> None:
    body = b"".join(chunk(part) for part in split(EVENTS, chunks))
    async with served(worker(split(stream_head() + body + END, packets))) as server:
        assert await answer(server) == ANSWER


def split(data: bytes, at: list[int]) -> list[bytes]:
    cuts = [0, *sorted({cut for cut in at if cut < len(data)}), len(data)]
    return [data[one:other] for one, other in itertools.pairwise(cuts)]


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n\r\n", stream_head(), stream_head() + b"9\r\n"]),
)
async def test_whatever_a_peer_sends_only_our_errors_come_out(noise: bytes, begin: bytes) -> None:
    async with served(worker([begin + noise + b" "])) as server:
        with pytest.raises(EngineError):
            await answer(server)


async def test_a_token_without_text_still_counts_in_the_log() -> None:
    empty = event({"choices": [{"index": 0, "text": "", "token_ids": [5], "finish_reason": None}]})
    async with served(worker([stream_head() + chunk(empty + EVENTS) + END])) as server:
        assert (await answer(server))[0] == Tokens("", (5,))


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"message": "m", "code": "invalid_request", "hint": "h"}, EngineRefused),
        (404, {"message": "m"}, EngineRefused),
        (401, {"message": "m"}, EngineRefused),
        (422, {"message": "m"}, EngineRefused),
        (500, {"message": "m"}, EngineInterrupted),
        (502, {"message": "m"}, EngineInterrupted),
        (429, {"message": "m"}, Busy),
        (503, {"message": "m"}, Busy),
    ],
)
async def test_each_status_becomes_one_of_our_errors(
    status: int, error: dict[str, str], expected: type[RallyChatError]
) -> None:
    found = await failure([reply({"error": error}, status=status)])
    assert type(found) is expected
    assert found.message.endswith(": m")


async def test_a_refusal_keeps_its_hint() -> None:
    assert (
        await failure([reply({"error": {"message": "m", "hint": "do this"}}, status=400)])
    ).hint == "do this"


async def test_busy_says_when_to_come_back() -> None:
    found = await failure([reply({"error": {"message": "m"}}, status=503, headers="Retry-After: 7\r\n")])
    assert isinstance(found, Busy)
    assert found.retry_after == 7.0


async def test_an_overflow_keeps_its_numbers() -> None:
    error = {"message": "m", "code": "context_length_exceeded", "needed": 70, "window": 64}
    found = await failure([reply({"error": error}, status=400)])
    assert isinstance(found, ContextOverflow)
    assert (found.needed, found.window) == (70, 64)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b'{"error": "flat"}', b'{"error": {}}'])
async def test_an_error_body_of_any_shape_is_an_error(body: bytes) -> None:
    assert type(await failure([reply(body, status=400)])) is EngineRefused


async def test_an_error_event_ends_the_answer_after_what_came() -> None:
    completion = [stream_head() + chunk(EVENTS.split(DONE)[0][:60] + b"\n\n")]
    assert isinstance(await failure(completion), EngineInterrupted)
    error = chunk(event({"error": {"message": "it broke", "code": "engine_interrupted"}}) + DONE) + END
    assert (await failure([stream_head() + error])).message == "it broke"


@pytest.mark.parametrize(
    "body",
    [
        EVENTS[:200],
        EVENTS.split(b'data: {"choices":[],"usage"')[0] + DONE,
        DONE,
        b"data: {}\n\n",
        b"data: nonsense\n\n",
        b"data: 5\n\n",
    ],
)
async def test_an_answer_without_its_end_is_interrupted(body: bytes) -> None:
    assert isinstance(await failure([stream_head() + chunk(body) + END]), EngineInterrupted)


async def test_a_connection_that_ends_early_is_interrupted() -> None:
    found = await failure([stream_head() + chunk(EVENTS[:200])])
    assert found.message == "The connection to the engine was lost: it was closed."


@pytest.mark.parametrize(
    "completion", [[b""], [stream_head(), b""], [stream_head() + chunk(EVENTS[:200]), b""]]
)
async def test_a_silent_engine_is_given_up(completion: list[bytes]) -> None:
    async with served(worker(completion)) as server:
        client = client_of(server, stall_timeout=0.2)
        with pytest.raises(
            EngineInterrupted, match=r"The engine hangs: it was silent for 0\.2 seconds\."
        ) as caught:
            async for _ in client.generate(CompletionRequest(prompt=[1], max_tokens=1)):
                pass
    assert caught.value.hung


async def test_a_reader_that_takes_its_time_is_no_silence_of_the_engine() -> None:
    async with served(worker([stream_head() + chunk(EVENTS) + END])) as server:
        stream = client_of(server, stall_timeout=1).generate(CompletionRequest(prompt=[1], max_tokens=1))
        first = await anext(stream)
        await _longer_than(1)
        assert [first, *[event async for event in stream]] == ANSWER


async def _longer_than(patience: float) -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(1.5 * patience, done.set)
    await done.wait()


async def test_text_that_is_not_unicode_is_refused_before_it_is_sent() -> None:
    async with served(worker([])) as server:
        with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
            await client_of(server).tokenize([Piece("half a \ud83d")])
        assert [asked.path for asked in server.asked] == ["/info"]


async def test_a_key_is_sent_with_every_request() -> None:
    async with served(worker([])) as server:
        await EngineClient(base_url=server.url, key="secret").info()
        assert server.asked[0].headers["authorization"] == "Bearer secret"


async def test_an_address_that_is_no_address_is_our_callers_mistake() -> None:
    with pytest.raises(ValueError, match="not an http"):
        EngineClient(base_url="ftp://somewhere")
    with pytest.raises(ValueError, match="either"):
        EngineClient()


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with served(worker([])) as server:
        pass
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await client_of(server).info()


# A vLLM server of somebody else: no /info, no `slot`, no `pieces`.

VLLM_CHUNKS = (
    event(
        {
            "id": "c",
            "choices": [{"index": 0, "text": "Hi", "token_ids": [5], "finish_reason": None}],
            "usage": None,
        }
    )
    + event({"id": "c", "choices": [{"index": 0, "text": "", "token_ids": [2], "finish_reason": "stop"}]})
    + event(
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2}}
    )
    + DONE
)


def vllm(asked: Asked) -> list[bytes]:
    match asked.path:
        case "/v1/models":
            return [reply({"object": "list", "data": [{"id": "llama", "max_model_len": 4096}]})]
        case "/tokenize":
            return [reply({"count": 2, "max_model_len": 4096, "tokens": [5, len(asked.body["prompt"])]})]
        case "/detokenize":
            return [reply({"prompt": "Hi"})]
        case "/v1/completions" if len(asked.body["prompt"]) > 4096:
            message = (
                "This model's maximum context length is 4096 tokens. However, you requested 5001 tokens"
                " (5000 in the messages, 1 in the completion). Please reduce the length."
            )
            return [
                reply({"error": {"message": message, "type": "BadRequestError", "code": 400}}, status=400)
            ]
        case "/v1/completions":
            return [stream_head() + chunk(VLLM_CHUNKS) + END]
    return [reply({"detail": "Not Found"}, status=404)]


async def test_a_vllm_server_is_described_by_what_it_tells() -> None:
    async with served(vllm) as server:
        info = await client_of(server).info()
    assert (info.window, info.slots, info.slot_affinity, info.token_ids) == (4096, None, False, True)


async def test_a_vllm_server_gets_nothing_it_does_not_know() -> None:
    async with served(vllm) as server:
        client = client_of(server)
        request = CompletionRequest(prompt=[1, 2], max_tokens=9, slot=3, said=1, seed=4, cache_salt="user-1")
        events = [event async for event in client.generate(request, session="abc")]
    sent = server.asked[-1]
    assert events == [Tokens("Hi", (5,)), Tokens("", (2,)), Done("stop", 2, 2, 0)]
    assert sent.headers["x-session-id"] == "abc"
    assert sent.body == {
        "model": "llama",
        "prompt": [1, 2],
        "max_tokens": 9,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 4,
        "stop": [],
        "stop_token_ids": [],
        "ignore_eos": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "cache_salt": "user-1",
    }


async def test_warming_a_vllm_server_asks_for_the_one_token_it_insists_on() -> None:
    async with served(vllm) as server:
        assert await answer(server, max_tokens=0) == [Done("stop", 2, 0, 0)]
    assert server.asked[-1].body["max_tokens"] == 1


async def test_a_vllm_server_tokenises_piece_by_piece_with_nothing_in_front() -> None:
    async with served(vllm) as server:
        client = client_of(server)
        assert await client.tokenize([Piece("ab"), Piece("cde", special=False)]) == [[5, 2], [5, 3]]
        assert await client.detokenize([5]) == "Hi"
    assert [asked.body for asked in server.asked if asked.path == "/tokenize"] == [
        {"prompt": "ab", "add_special_tokens": False},
        {"prompt": "cde", "add_special_tokens": False},
    ]


async def test_a_vllm_overflow_is_read_from_its_sentence() -> None:
    async with served(vllm) as server:
        with pytest.raises(ContextOverflow) as caught:
            await answer(server, prompt=[1] * 5000)
    assert (caught.value.needed, caught.value.window) == (5001, 4096)


async def test_a_server_that_is_neither_ours_nor_vllm_is_refused() -> None:
    async with served(
        lambda asked: [reply({"data": []}, status=200 if asked.path == "/v1/models" else 404)]
    ) as server:
        with pytest.raises(EngineRefused, match="max_model_len"):
            await client_of(server).info()
