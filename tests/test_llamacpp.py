"""The llama.cpp backend against a scripted `xllamacpp`: what it sets, and what it makes of the chunks."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.backend import BackendEvent, Step
from rallychat.engines.llamacpp import LlamaCpp
from rallychat.engines.protocol import CompletionRequest, Done, Piece, Prefill, WorkerSpec
from rallychat.engines.slots import Slot
from rallychat.errors import (
    ContextOverflow,
    EngineInterrupted,
    EngineRefused,
    EngineUnavailable,
    RallyChatError,
)
from tests.gguf_file import CHAT, gguf_bytes
from tests.served import Asked, Served, reply, served

Script = Callable[[dict[str, Any], Callable[[Any], bool]], None]
"""Stands for `Server.handle_completions`."""


class Namespace(types.SimpleNamespace):
    """Parameters as xllamacpp has them: nested groups, any name."""

    def __getattr__(self, name: str) -> Any:
        self.__dict__[name] = found = Namespace()
        return found


class FakeServer:
    script: Script
    listening_address = ""
    given: Namespace

    def __init__(self, params: Namespace) -> None:
        type(self).given = params

    def handle_completions(self, body: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        type(self).script(body, callback)


class FailingServer(FakeServer):
    def __init__(self, params: Namespace) -> None:
        raise RuntimeError("Failed to init server")


def fake_library(server: type[FakeServer]) -> types.ModuleType:
    library = types.ModuleType("xllamacpp")
    flash = {f"LLAMA_FLASH_ATTN_TYPE_{name}": name for name in ("AUTO", "ENABLED", "DISABLED")}
    for name, value in {
        "CommonParams": Namespace,
        "Server": server,
        "llama_flash_attn_type": types.SimpleNamespace(**flash),
        "ggml_type": types.SimpleNamespace(GGML_TYPE_F16="f16", GGML_TYPE_Q8_0="q8_0"),
        "get_device_info": lambda: [{"type": "GGML_BACKEND_DEVICE_TYPE_CPU"}],
    }.items():
        setattr(library, name, value)
    return library


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "xllamacpp", fake_library(FakeServer))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return path


def opened(weights: Path, listener: Served | None = None, **spec: Any) -> LlamaCpp:
    FakeServer.listening_address = listener.url if listener else "http://127.0.0.1:9"
    return LlamaCpp(WorkerSpec("llamacpp", "tiny", path=str(weights), **spec), folder=weights.parent)


def chunk(text: str, last: int | None, count: int) -> dict[str, Any]:
    logprobs = None if last is None else {"content": [{"id": last}]}
    choice = {"text": text, "finish_reason": None, "logprobs": logprobs}
    return {"choices": [choice], "timings": {"predicted_n": count}}


def final(reason: str, count: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 1}}
    return {"choices": [{"text": "", "finish_reason": reason, "logprobs": None}], "usage": usage}


def saying(*chunks: Any) -> Script:
    def script(body: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        for one in chunks:
            if callback(one):
                return

    return script


async def answered(backend: LlamaCpp, **options: Any) -> list[BackendEvent]:
    request = CompletionRequest(**({"prompt": [3, 4], "max_tokens": 9} | options))
    return [event async for event in backend.generate(request, Slot(1))]


async def test_every_surprising_default_is_set(weights: Path) -> None:
    opened(weights, slots=3, window=512, threads=5)
    given = FakeServer.given
    assert (given.n_parallel, given.n_ctx, given.kv_unified) == (3, 3 * 512, False)
    assert (given.cache_ram_mib, given.cache_idle_slots, given.ctx_shift, given.fit_params) == (
        0,
        False,
        False,
        False,
    )
    assert (given.n_batch, given.n_ubatch, given.flash_attn_type) == (128, 128, "DISABLED")
    assert (given.cpuparams.n_threads, given.cpuparams_batch.n_threads) == (5, 5)
    assert (given.ui, given.endpoint_slots, given.endpoint_props, given.endpoint_metrics) == (False,) * 4
    assert (given.port, given.cors_credentials, len(given.api_keys[0]) >= 32) == (0, False, True)
    assert given.hostnames == [str(weights.parent / "llama.sock")]


async def test_a_request_is_said_in_llama_cpps_words(weights: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def script(body: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        bodies.append(body)
        callback(final("stop", 0))

    FakeServer.script = staticmethod(script)
    await answered(
        opened(weights), temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, seed=6
    )
    await answered(opened(weights), temperature=0, stop=["x"], ignore_eos=True)
    asked, greedy = bodies
    assert (asked["prompt"], asked["max_tokens"], asked["id_slot"], asked["seed"]) == ([3, 4], 9, 1, 6)
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["min_p"]) == (0.7, 0.9, 5, 0.1)
    assert (asked["repeat_penalty"], asked["repeat_last_n"]) == (1.2, 11)
    assert asked["samplers"] == ["penalties", "temperature", "min_p", "top_k", "top_p"]
    assert (greedy["top_k"], greedy["samplers"], greedy["ignore_eos"]) == (1, ["penalties", "top_k"], True)
    assert "seed" not in greedy
    assert "stop" not in greedy, "stop strings are the worker's: llama.cpp would hold back ids with the text"


async def test_chunks_become_events_and_neighbours_are_joined(weights: Path) -> None:
    progress = {"prompt_progress": {"total": 2, "cache": 1, "processed": 2, "time_ms": 5}}
    FakeServer.script = staticmethod(
        saying(chunk("", None, 0) | progress, chunk("a", 2, 1), chunk("b", 3, 2), final("length", 2))
    )
    events = await answered(opened(weights))
    assert events[0] == Prefill(2, 1, 2, 5)
    assert joined(events) == Step("ab", (2, 3), 2)
    assert events[-1] == Done("length", 2, 2, 1)


def joined(events: list[BackendEvent]) -> Step:
    steps = [event for event in events if isinstance(event, Step)]
    ids = tuple(token for step in steps for token in step.ids)
    return Step("".join(step.text for step in steps), ids, steps[-1].count)


@pytest.mark.parametrize(
    ("tokenised", "ids"),
    [
        ({"🦜": [7, 8, 9]}, (2, 7, 8, 9, 3)),
        ({"🦜": [1, 7, 8, 9], "\n": [5, 6], "\n🦜": [5, 6, 7, 8, 9]}, (2, 7, 8, 9, 3)),
        ({"🦜": [7, 9]}, (2,)),
        ({"🦜": [7, 9, 8]}, (2,)),
    ],
    ids=["found", "found behind a newline", "another count", "another last token"],
)
async def test_ids_of_a_split_character_are_recovered_or_unknown_from_there_on(
    weights: Path, tokenised: dict[str, list[int]], ids: tuple[int, ...]
) -> None:
    def tokenise(asked: Asked) -> list[bytes]:
        return [reply({"tokens": tokenised.get(asked.body["content"], [0])})]

    FakeServer.script = staticmethod(
        saying(chunk("a", 2, 1), chunk("🦜", 9, 4), chunk("b", 3, 5), final("stop", 5))
    )
    async with served(tokenise) as listener:
        assert joined(await answered(opened(weights, listener))) == Step("a🦜b", ids, 5)


async def test_half_a_character_at_the_end_is_counted_but_not_shown(weights: Path) -> None:
    FakeServer.script = staticmethod(saying(chunk("a", 2, 1), final("length", 3)))
    events = await answered(opened(weights))
    assert (joined(events), events[-1]) == (Step("a", (2,), 1), Done("length", 2, 3, 1))


async def test_leaving_cancels_with_the_next_chunk(weights: Path) -> None:
    verdicts: list[bool] = []
    left = threading.Event()

    def script(body: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        verdicts.append(callback(chunk("a", 2, 1)))  # may hear of it already: the reader is quick
        left.wait()
        if not verdicts[0]:
            verdicts.append(callback(chunk("b", 3, 2)))

    FakeServer.script = staticmethod(script)
    request = CompletionRequest(prompt=[3], max_tokens=9)
    async with aclosing(opened(weights).generate(request, Slot(0))) as stream:
        assert await anext(stream) == Step("a", (2,), 1)
        asyncio.get_running_loop().call_soon(left.set)
        await stream.aclose()
    assert verdicts[-1]


@pytest.mark.parametrize(
    ("chunks", "expected", "says"),
    [
        ([], EngineInterrupted, "without a reason"),
        ([chunk("a", 2, 1)], EngineInterrupted, "without a reason"),
        ([{"error": {"code": 400, "message": "bad"}}], EngineRefused, "llama.cpp: bad"),
        ([{"error": {"code": 500, "message": "bad"}}], EngineInterrupted, "llama.cpp: bad"),
        (
            [
                {
                    "error": {
                        "code": 400,
                        "type": "exceed_context_size_error",
                        "n_prompt_tokens": 70,
                        "n_ctx": 64,
                    }
                }
            ],
            ContextOverflow,
            "need 71 tokens",
        ),
        ([{"unheard": "of"}], EngineInterrupted, "cannot be read"),
    ],
)
async def test_each_failure_is_one_of_our_errors(
    weights: Path, chunks: list[Any], expected: type[RallyChatError], says: str
) -> None:
    FakeServer.script = staticmethod(saying(*chunks))
    with pytest.raises(expected, match=says):
        await answered(opened(weights))


async def test_an_exception_of_the_library_itself_is_told(weights: Path) -> None:
    def script(body: dict[str, Any], callback: Callable[[Any], bool]) -> None:
        raise RuntimeError("out of memory")

    FakeServer.script = staticmethod(script)
    with pytest.raises(EngineInterrupted) as caught:
        await answered(opened(weights))
    assert str(caught.value.__cause__) == "out of memory"


async def test_warming_shows_nothing_even_if_llama_cpp_says_something(weights: Path) -> None:
    FakeServer.script = staticmethod(saying(chunk("The", 2, 1), final("length", 1)))
    assert await answered(opened(weights), max_tokens=0) == [Done("length", 2, 0, 1)]


async def test_a_load_that_fails_names_the_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", fake_library(FailingServer))
    with pytest.raises(EngineUnavailable, match=r"could not load tiny\.gguf"):
        opened(weights)


@pytest.mark.parametrize(("model", "added"), [("llama", ["▁"]), ("gpt2", [])])
async def test_only_a_prompts_first_piece_gets_the_space_that_sentencepiece_puts_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, added: list[str]
) -> None:
    """A vocabulary of characters, read as llama.cpp reads one of that kind: a space in front of each text."""
    monkeypatch.setitem(sys.modules, "xllamacpp", fake_library(FakeServer))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(CHAT | {"tokenizer.ggml.model": model}))

    def tokenise(asked: Asked) -> list[bytes]:
        text = ("▁" if added else "") + asked.body["content"]
        return [reply({"tokens": list(map(ord, text))})]

    pieces = [
        Piece("one", start=True),
        Piece("two"),
        Piece("<s>", special=False),
        Piece(""),
        Piece("\nthree"),
    ]
    async with served(tokenise) as listener:
        found = await opened(path, listener).tokenize(pieces)
    assert [[chr(token) for token in ids] for ids in found] == [
        [*added, *"one"],
        list("two"),
        list("<s>"),
        [],
        list("\nthree"),
    ]
