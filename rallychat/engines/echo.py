"""The scripted double: an engine without weights, for tests, demonstrations and the contract suite.

It answers with what the user said, or with what `EchoOptions` or the user's message script. A message that begins
with `!` is a command: `!say TEXT`, `!count N`, `!repeat N TEXT`, `!recall N` (so many letters of what the prompt
says), and `!crash`, `!hang` or `!fail` with the number of tokens to give first. What it answers follows from what its
slot's cache holds, as with any engine. Its tokens are bytes, pairs of lower-case letters and three control tokens, so
that words are several tokens, other scripts are split within characters, and joining two texts can change their tokens.
"""

from __future__ import annotations

import asyncio
import codecs
import ctypes
import itertools
import os
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.engines.backend import BackendEvent, Copied, Step
from rallychat.engines.protocol import CompletionRequest, Done, EngineInfo, Piece, Prefill, WorkerSpec
from rallychat.engines.slots import Slot, reusable
from rallychat.errors import EngineInterrupted, EngineUnavailable, SettingsError

CONTROL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS, START, END = range(3)
_BYTES: Final = len(CONTROL)
_PAIRS: Final = _BYTES + 256
VOCABULARY: Final = _PAIRS + 26 * 26
TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class EchoOptions(BaseModel):
    """`options` of an echo model. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replies: tuple[str, ...] = ()
    """What is answered to the first, second, ... user message, over and over; none: the message itself."""
    delay_ms: float = Field(0, ge=0)
    """Time one token takes."""
    prefill_ms: float = Field(0, ge=0)
    """Time one batch of the prompt takes."""
    batch: int = Field(64, ge=1)
    """Prompt tokens evaluated in one step."""
    rollback: bool = True
    """The tail of a cache can be dropped; if not, a prompt reuses the whole of it or nothing."""
    load_ms: float = Field(0, ge=0)
    """Time loading takes, with the interpreter lock held, as native libraries do."""
    load_error: str = ""
    """Fail to load, with this as last words."""
    crash_after: int | None = Field(None, ge=0)
    """Abort the process after so many tokens of an answer."""
    hang_after: int | None = Field(None, ge=0)
    """Never go on after so many tokens of an answer."""
    fail_after: int | None = Field(None, ge=0)
    """Report a failure after so many tokens of an answer."""


@dataclass(frozen=True, slots=True)
class _Script:
    """What one answer will be."""

    reply: Iterator[int]
    crash_after: int | None = None
    hang_after: int | None = None
    fail_after: int | None = None


class Echo:
    """See the module."""

    vocabulary = VOCABULARY

    def __init__(self, spec: WorkerSpec) -> None:
        try:
            self._options = EchoOptions.model_validate(spec.options or {})
        except ValidationError as exc:
            first = exc.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"Option '{name}' of the echo engine: {first['msg']}.") from exc
        _load(self._options)
        self.info = EngineInfo(
            engine="echo",
            window=spec.window,
            slots=spec.slots,
            slot_affinity=True,
            rollback=self._options.rollback,
            offload=True,
            instant=True,
            chat_template=TEMPLATE,
            bos_token=CONTROL[BOS],
            eos_token=CONTROL[END],
            control_tokens=CONTROL,
        )

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """See `Backend`."""
        return [encode(piece.text, special=piece.special) for piece in pieces]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `Backend`."""
        return decode(ids).decode(errors="replace")

    async def generate(self, request: CompletionRequest, slot: Slot) -> AsyncGenerator[BackendEvent]:
        """See `Backend`."""
        total = len(request.prompt)
        cached = reusable(slot.held, request.prompt, rollback=self._options.rollback)
        cached = cached if cached < total else total - 1 if self._options.rollback else 0
        seen = [*slot.held[:cached], *request.prompt[cached:]]
        for done in (*range(cached, total, self._options.batch), total):
            if done > cached:
                await asyncio.sleep(self._options.prefill_ms / 1000)
            yield Prefill(total, cached, done)
        if request.max_tokens == 0:
            yield Done("length", total, 0, cached)
            return
        script = self._script(request, seen)
        text = codecs.getincrementaldecoder("utf-8")("replace")
        waiting: list[int] = []
        count = 0
        for token in itertools.islice(script.reply, request.max_tokens):
            await asyncio.sleep(self._options.delay_ms / 1000)
            await _misbehave(script, count)
            count += 1
            waiting.append(token)
            shown = text.decode(decode([token], control=False))
            if not text.getstate()[0]:
                yield Step(shown, tuple(waiting), count)
                waiting.clear()
        await _misbehave(script, count)
        reason: Final = "length" if count >= request.max_tokens else "stop"
        yield Done(reason, total, count, cached)

    async def save(self, slot: Slot, name: str) -> Copied:
        """See `Backend`. Nothing is kept here: what the worker knows a slot to hold is what it holds."""
        return Copied(len(slot.held), 0.0)

    async def restore(self, slot: Slot, name: str) -> float:
        """See `Backend`."""
        return 0.0

    def discard(self, name: str) -> None:
        """See `Backend`."""

    def _script(self, request: CompletionRequest, seen: list[int]) -> _Script:
        said = user_messages(seen)
        options = self._options
        script = _Script(iter(()), options.crash_after, options.hang_after, options.fail_after)
        if options.replies:
            reply = options.replies[max(0, len(said) - 1) % len(options.replies)]
        elif said and said[-1].startswith("!"):
            reply, script = _command(said[-1][1:], script, seen)
        else:
            reply = said[-1] if said else decode(seen, control=False).decode(errors="replace")
        ids = encode(reply, special=False)
        return replace(
            script, reply=itertools.cycle(ids or [_BYTES + 32]) if request.ignore_eos else iter(ids)
        )


def _command(line: str, script: _Script, seen: list[int]) -> tuple[str, _Script]:
    """The answer that a `!` message asks for; an unknown command is answered with itself."""
    name, _, rest = line.partition(" ")
    number, _, text = rest.partition(" ")
    count = min(int(number), 100_000) if number.isdecimal() else 0
    match name:
        case "say":
            return rest, script
        case "count":
            return " ".join(str(n) for n in range(1, count + 1)), script
        case "repeat":
            return text * count, script
        case "recall":
            return "\n".join(text for _, text in messages(seen))[:count], script
        case "crash":
            return line * (count + 1), replace(script, crash_after=count)
        case "hang":
            return line * (count + 1), replace(script, hang_after=count)
        case "fail":
            return line * (count + 1), replace(script, fail_after=count)
    return f"!{line}", script


async def _misbehave(script: _Script, count: int) -> None:
    if count == script.crash_after:
        print("echo: crashing, as asked", file=sys.stderr, flush=True)
        os.abort()
    if count == script.hang_after:
        await asyncio.Event().wait()
    if count == script.fail_after:
        raise EngineInterrupted("The echo engine failed, as asked.")


def _load(options: EchoOptions) -> None:
    if options.load_ms and sys.platform != "win32":
        ctypes.PyDLL(None).usleep(
            int(options.load_ms * 1000)
        )  # PyDLL, unlike CDLL, keeps the interpreter lock
    elif options.load_ms:
        time.sleep(options.load_ms / 1000)
    if options.load_error:
        print(options.load_error, file=sys.stderr, flush=True)
        raise EngineUnavailable("The echo engine could not be loaded, as asked.")


def encode(text: str, *, special: bool) -> list[int]:
    """The tokens of a text; control tokens are recognised only if `special`."""
    ids: list[int] = []
    while text:
        at, token = (
            min(
                ((at, index) for index, control in enumerate(CONTROL) if (at := text.find(control)) >= 0),
                default=(len(text), -1),
            )
            if special
            else (len(text), -1)
        )
        ids += _encode_plain(text[:at].encode())
        if token < 0:
            break
        ids.append(token)
        text = text[at + len(CONTROL[token]) :]
    return ids


def _encode_plain(data: bytes) -> list[int]:
    ids, at = [], 0
    while at < len(data):
        pair = data[at : at + 2]
        if len(pair) == 2 and pair.isalpha() and pair.islower():
            ids.append(_PAIRS + (pair[0] - 97) * 26 + pair[1] - 97)
            at += 2
        else:
            ids.append(_BYTES + pair[0])
            at += 1
    return ids


def decode(ids: Sequence[int], *, control: bool = True) -> bytes:
    """The bytes of these tokens; control tokens as their texts, or as nothing."""
    parts = []
    for token in ids:
        if token < _BYTES:
            parts.append(CONTROL[token].encode() if control else b"")
        elif token < _PAIRS:
            parts.append(bytes((token - _BYTES,)))
        else:
            first, second = divmod(token - _PAIRS, 26)
            parts.append(bytes((97 + first, 97 + second)))
    return b"".join(parts)


def user_messages(prompt: Sequence[int]) -> list[str]:
    """What the user said in a prompt of this engine's template."""
    return [text for role, text in messages(prompt) if role == "user"]


def messages(prompt: Sequence[int]) -> list[tuple[str, str]]:
    """Roles and texts of a prompt of this engine's template."""
    found = []
    for at in (at for at, token in enumerate(prompt) if token == START):
        body = prompt[at + 1 :]
        end = next((n for n, token in enumerate(body) if token in (START, END)), len(body))
        role, _, text = decode(body[:end]).decode(errors="replace").partition("\n")
        found.append((role, text))
    return found
