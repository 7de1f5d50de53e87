"""llama.cpp inside a worker, through xllamacpp. Knows that library's ways; see the comments before undoing any.

Token ids go in as they are; each slot's cache is chosen by the caller; nothing is ever queued inside llama.cpp.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import orjson

from rallychat.catalog.gguf import GGUF, read_gguf
from rallychat.engines import wire
from rallychat.engines.backend import BackendEvent, Copied, Step
from rallychat.engines.llamacpp_params import common_params
from rallychat.engines.protocol import CompletionRequest, Done, EngineInfo, Piece, Prefill, WorkerSpec
from rallychat.engines.slots import Slot
from rallychat.errors import (
    ContextOverflow,
    EngineInterrupted,
    EngineRefused,
    EngineUnavailable,
    SettingsError,
)

UNSUPPORTED: Final = frozenset(
    {"t5", "t5encoder", "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert"}
    | {"neo-bert", "eurobert", "gemma-embedding", "clip", "wavtokenizer-dec"}
)
"""Architectures that llama.cpp reads but that cannot chat here; `t5` aborts the whole process."""
_CACHED_TEXTS: Final = 4096
SHORT: Final = 128
"""Tokens of a prompt, beside what is cached, whose progress is told together with the first token."""
PACE: Final = 0.025
"""Seconds after tokens were told until the next are: 40 times a second reads as fluently as 90, and each time costs
the cores that compute. The first token and the end never wait."""
_NEVER: Final = 1e-7
"""Tokens so much less likely than the best are left out: together they are under half a percent of it."""


class LlamaCpp:
    """One model in llama.cpp. Opening it blocks, with the interpreter lock held, until the weights are loaded."""

    def __init__(self, spec: WorkerSpec, *, folder: Path) -> None:
        self._header = check_weights(Path(spec.path))
        window = min(spec.window, self._header.context_length or spec.window)
        self.vocabulary = len(self._header.tokens)
        self.info = _info(self._header, slots=spec.slots, window=window)
        self._key = secrets.token_urlsafe(32)
        # Tokenising is offered over HTTP only: a listener of its own, in the worker's private folder, with a key.
        self._listener = wire.Address(socket=folder / "llama.sock")
        self._copies = folder / "caches"
        self._copies.mkdir(exist_ok=True)
        self._server = _open(spec, window, self._listener, self._key, self._copies)
        if self._listener.socket is None or not self._listener.socket.exists():
            self._listener = wire.Address.of_url(self._server.listening_address)
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(spec.slots, thread_name_prefix="slot")
        self._ready: deque[_Stream] = deque()
        self._scheduled = False
        self._known: dict[tuple[str, bool], list[int]] = {}

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """See `Backend`."""
        return [list(await self._piece(piece)) for piece in pieces]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `Backend`."""
        return str((await self._ask("/detokenize", {"tokens": list(ids)}))["content"]) if ids else ""

    async def generate(self, request: CompletionRequest, slot: Slot) -> AsyncGenerator[BackendEvent]:
        """See `Backend`."""
        stream = _Stream()
        running = self._loop.run_in_executor(self._threads, self._run, _body(request, slot), stream)
        running.add_done_callback(lambda _: stream.wake.set())
        answer = _Answer(request)
        try:
            while not answer.done:
                await stream.wake.wait()
                stream.wake.clear()
                ended = running.done()
                events = await self._read(stream, answer)
                for event in events:
                    yield event
                if any(isinstance(event, Step) for event in events):
                    stream.announced = True
                    self._loop.call_later(PACE, stream.listen)
                else:  # progress is told at once, and so is the first token
                    stream.listen()
                if ended and not stream.chunks and not answer.done:
                    raise EngineInterrupted(
                        "llama.cpp ended the answer without a reason."
                    ) from running.exception()
        finally:
            stream.cancelled = True
            await asyncio.wait({running})  # the slot is free only when llama.cpp has let go of it

    async def save(self, slot: Slot, name: str) -> Copied:
        """See `Backend`. Takes about 25 ms for 25 MB, in which nobody else gets a token."""
        saved = await self._ask(f"/slots/{slot.index}?action=save", {"filename": name})
        if not saved["n_written"]:  # a disk that is full is no error to llama.cpp
            self.discard(name)
            raise EngineRefused("llama.cpp could not write what a slot holds.")
        return Copied(int(saved["n_written"]), float(saved["timings"]["save_ms"]))

    async def restore(self, slot: Slot, name: str) -> float:
        """See `Backend`."""
        restored = await self._ask(f"/slots/{slot.index}?action=restore", {"filename": name})
        return float(restored["timings"]["restore_ms"])

    def discard(self, name: str) -> None:
        """See `Backend`."""
        (self._copies / name).unlink(missing_ok=True)

    async def _read(self, stream: _Stream, answer: _Answer) -> list[BackendEvent]:
        """Everything that has arrived, with neighbouring steps joined."""
        events: list[BackendEvent] = []
        while stream.chunks:
            event = answer.take(stream.chunks.popleft())
            if isinstance(event, Step) and answer.unknown:
                event = Step(event.text, await self._recover(event, answer), event.count)
            last = events[-1] if events else None
            if isinstance(event, Step) and isinstance(last, Step) and bool(event.ids) == bool(last.ids):
                events[-1] = Step(last.text + event.text, last.ids + event.ids, event.count)
            elif event is not None:
                events.append(event)
        return events

    def _run(self, body: dict[str, Any], stream: _Stream) -> None:
        """One answer, on a thread of its own. The callback must not raise: xllamacpp swallows it and cancels."""

        def on_chunk(chunk: Any) -> bool:
            stream.chunks.append(chunk)
            if not stream.announced and not _passing(chunk):
                stream.announced = True
                self._ready.append(stream)
                if not self._scheduled:  # one wake-up of the loop for all streams of an engine step
                    self._scheduled = True
                    self._loop.call_soon_threadsafe(self._announce)
            return stream.cancelled

        if not stream.cancelled:
            self._server.handle_completions(body, on_chunk)

    def _announce(self) -> None:
        self._scheduled = False
        while self._ready:
            self._ready.popleft().wake.set()

    async def _recover(self, step: Step, answer: _Answer) -> tuple[int, ...]:
        """The ids of a step of several tokens (a character split over tokens), of which only the last was told.

        Accepted only if their number and the last one are right; else the rest of the answer's ids are unknown.
        """
        count, last = answer.unknown, step.ids[-1] if step.ids else None
        answer.unknown = 0
        if not answer.exact or last is None:
            answer.exact = False
            return ()
        newline = await self._tokens("\n", special=False)
        for before in ("", "\n"):  # behind a newline no tokenizer puts a space of its own in front
            ids = await self._tokens(before + step.text, special=False)
            ids = ids[len(newline) if before else 0 :]
            if len(ids) == count and ids[-1] == last:
                return tuple(ids)
        answer.exact = False
        return ()

    async def _piece(self, piece: Piece) -> list[int]:
        """The ids of a piece. A space in front belongs to a prompt's start alone; behind a newline none is put."""
        if piece.text and self._header.space_in_front and not piece.start:
            newline = await self._tokens("\n", special=False)
            ids = await self._tokens("\n" + piece.text, special=piece.special)
            if ids[: len(newline)] == newline:
                return ids[len(newline) :]
        return await self._tokens(piece.text, special=piece.special)

    async def _tokens(self, text: str, *, special: bool) -> list[int]:
        if not text:
            return []
        key = (text, special)
        if (known := self._known.get(key)) is not None:
            return known
        body = {"content": text, "add_special": False, "parse_special": special}
        ids: list[int] = (await self._ask("/tokenize", body))["tokens"]
        if len(text) <= 64:  # template pieces and split characters come again and again
            if len(self._known) >= _CACHED_TEXTS:
                self._known.clear()
            self._known[key] = ids
        return ids

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            sent = wire.request(self._listener, "POST", path, body=orjson.dumps(body), headers=headers)
            async with sent as response:
                found = orjson.loads(await response.body())
        except (wire.WireError, orjson.JSONDecodeError) as exc:
            raise EngineInterrupted(f"llama.cpp did not answer {path}: {exc}.") from exc
        if "error" in found:
            raise EngineRefused(f"llama.cpp refused {path}: {found['error'].get('message', '')}.")
        return dict(found)


def _passing(chunk: Any) -> bool:
    """Progress that the first token overtakes at once: telling it apart would only delay that token."""
    progress = chunk.get("prompt_progress")
    return progress is not None and progress["total"] - progress["cache"] <= SHORT


class _Stream:
    """What passes from an answer's thread to the loop. Appending and popping are atomic."""

    def __init__(self) -> None:
        self.chunks: deque[Any] = deque()
        self.wake = asyncio.Event()
        self.announced = False
        """The loop knows that there is something, or does not want to know yet."""
        self.cancelled = False

    def listen(self) -> None:
        """The loop wants to be woken by the next chunk; those that came meanwhile wake it now."""
        self.announced = False
        if self.chunks:
            self.wake.set()


class _Answer:
    """Reads one answer's chunks."""

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request
        self._count = 0
        self.exact = True
        """All ids so far are known."""
        self.unknown = 0
        """Tokens in the step just taken, if their ids are still to be found."""
        self.done = False

    def take(self, chunk: Any) -> BackendEvent | None:
        """The event a chunk stands for. Raises what an error chunk says."""
        try:
            return self._take(chunk)
        except (KeyError, IndexError, TypeError) as exc:
            raise EngineInterrupted("llama.cpp sent something that cannot be read.") from exc

    def _take(self, chunk: Any) -> BackendEvent | None:
        if "error" in chunk:
            raise _refusal(chunk["error"])
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            self.done = True
            return self._done(choice["finish_reason"], chunk["usage"])
        if progress := chunk.get("prompt_progress"):
            return Prefill(progress["total"], progress["cache"], progress["processed"], progress["time_ms"])
        if self._request.max_tokens == 0:  # llama.cpp still samples one token, which nobody wants
            return None
        count = chunk["timings"]["predicted_n"]
        new, self._count = count - self._count, count
        logprobs = choice["logprobs"]
        last = logprobs["content"][0]["id"] if logprobs else None
        ids = () if last is None or not self.exact else (last,)
        self.unknown = new if new != 1 or last is None or not self.exact else 0
        return Step(choice["text"], ids, count)

    def _done(self, reason: str, usage: dict[str, Any]) -> Done:
        generated = usage["completion_tokens"] if self._request.max_tokens else 0
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return Done("stop" if reason == "stop" else "length", usage["prompt_tokens"], generated, cached)


def check_weights(path: Path) -> GGUF:
    """The header of weights that llama.cpp can chat with.

    Raises:
        SettingsError: not a GGUF file.
        EngineUnavailable: an architecture that would abort the process or cannot generate.
    """
    header = read_gguf(path)
    if header.architecture in UNSUPPORTED:
        raise EngineUnavailable(
            f"llama.cpp cannot chat with '{header.architecture}' models ({path.name}).",
            hint="choose a model with a decoder-only architecture",
        )
    if not header.architecture or not header.tokens:
        raise SettingsError(
            f"{path} names no architecture or holds no vocabulary.", hint="it is not a chat model"
        )
    return header


def _info(header: GGUF, *, slots: int, window: int) -> EngineInfo:
    return EngineInfo(
        engine="llamacpp",
        window=window,
        slots=slots,
        slot_affinity=True,
        token_ids=True,
        rollback=header.rollback,
        offload=header.rollback,
        cache_bytes=header.kv_bytes_per_token or 0,
        chat_template=header.chat_template,
        bos_token=header.bos_token,
        eos_token=header.eos_token,
        control_tokens=header.control_tokens,
    )


def _open(spec: WorkerSpec, window: int, listener: wire.Address, key: str, copies: Path) -> Any:
    import xllamacpp as x

    params = common_params(spec, window)
    params.slot_save_path = f"{copies}{os.sep}"
    params.api_keys = [key]
    params.hostnames = [str(listener.socket) if sys.platform != "win32" else "127.0.0.1"]
    try:
        return x.Server(params)
    except RuntimeError as exc:
        raise EngineUnavailable(f"llama.cpp could not load {Path(spec.path).name}.") from exc


def _body(request: CompletionRequest, slot: Slot) -> dict[str, Any]:
    """The request in llama.cpp's words."""
    body: dict[str, Any] = {
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "id_slot": slot.index,
        "cache_prompt": not slot.foreign,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # without it nothing calls back, and nothing can cancel, before the first token
        "timings_per_token": True,  # the only count of tokens that includes those of half a character
        "logprobs": 1,  # the only way to the ids
        "post_sampling_probs": True,  # of the few candidates that are left then
        "repeat_penalty": request.repetition_penalty,
        "repeat_last_n": len(request.prompt) + request.max_tokens,
        "ignore_eos": request.ignore_eos,
    }
    if request.seed is not None:
        body["seed"] = request.seed
    return body | _sampling(request)


def _sampling(request: CompletionRequest) -> dict[str, Any]:
    """How the next token is chosen, without sorting a vocabulary for each token (1-4 ms a slot, measured)."""
    if request.temperature == 0:
        return {"temperature": 0, "top_k": 1, "samplers": ["penalties", "top_k"]}
    return {
        "temperature": request.temperature,
        "min_p": max(request.min_p, _NEVER),
        "top_k": request.top_k,
        "top_p": request.top_p,
        # vLLM's order, which model cards' values are meant for; llama.cpp's own has temperature last.
        "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
    }


def _refusal(error: dict[str, Any]) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflow(needed=int(error["n_prompt_tokens"]) + 1, window=int(error["n_ctx"]))
    message = f"llama.cpp: {error.get('message', 'unknown error')}"
    return EngineRefused(message) if error.get("code") == 400 else EngineInterrupted(message)
