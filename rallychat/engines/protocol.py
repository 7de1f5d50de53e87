"""The wire protocol between the service and an engine: vLLM's dialect of the OpenAI completions API.

A worker answers over HTTP on a Unix socket (loopback with a key where there are none):

`GET  /health`          200 when ready
`GET  /info`            `EngineInfo` (ours; absent elsewhere)
`POST /tokenize`        `{"prompt": str, "add_special_tokens": bool}` -> `{"tokens": [int], "count", "max_model_len"}`,
                        or ours: `{"pieces": [{"text", "special"}]}` -> `{"tokens": [[int]]}`
`POST /detokenize`      `{"tokens": [int]}` -> `{"prompt": str}`
`POST /v1/completions`  `CompletionRequest`; server-sent events, `data: [DONE]` at the end; closing the stream cancels
`POST /slots/save`      ours, where `EngineInfo.offload`: `{"slot", "name", "prompt": [int]}` copies what the slot holds
                        out of the engine -> `{"dropped": [name], "ms"}`, the copies that had to go for it, and what
                        it took, the wait for a step of the engine left out
`POST /slots/restore`   `{"slot", "name", "cache_salt"}` brings a copy back into a slot -> `{"ms"}`; 404 where there is
                        none
`POST /slots/discard`   `{"names": [str]}` deletes copies

A streamed chunk is `{"choices": [{"index": 0, "text", "token_ids", "finish_reason"}]}`; before the first token
ours also sends `{"choices": [], "prompt_progress": {"total", "cached", "processed", "ms"}}`; the last chunk is
`{"choices": [], "usage": {…, "prompt_tokens_details": {"cached_tokens"}}}`; a failure after streaming began is
`{"error": {"message", "code"}}`. A single chunk never ends in half a character.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rallychat.messages import Piece as Piece


class CompletionRequest(BaseModel):
    """Body of `POST /v1/completions`. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    prompt: list[int]
    max_tokens: int = Field(ge=0)
    """0 evaluates the prompt and generates nothing: it warms the slot."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = Field(None, ge=0, lt=2**32 - 1)
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    """Tokens that end the answer, beside the model's own; they are no part of it."""
    ignore_eos: bool = False
    stream: bool = True
    stream_options: dict[str, bool] = Field(default_factory=lambda: {"include_usage": True})
    return_token_ids: bool = True
    cache_salt: str | None = None
    """Whose it is: a cached prefix is reused only under the salt that it was computed with."""
    slot: int | None = None
    """Ours: the slot whose cache holds this prompt's prefix."""
    said: int = Field(0, ge=0)
    """Ours: how many of the prompt's last tokens are the answer so far, which goes on. No encoder reads them."""


class EngineInfo(BaseModel):
    """What an engine says of itself. Capabilities decide, never names."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    engine: str
    window: int
    """Tokens one slot holds, prompt and answer together."""
    slots: int | None = None
    """Concurrent answers; None: the engine schedules for itself."""
    slot_affinity: bool = False
    """`slot` chooses the cache that is reused."""
    token_ids: bool = True
    """Prompts may be token ids and answers return theirs."""
    rollback: bool = True
    """A tail can be dropped from the cache (not so for sliding-window and recurrent models)."""
    extends: bool = True
    """What was read of a prompt spares reading it again when more follows (not so for encoder-decoders)."""
    offload: bool = False
    """What a slot's cache holds can be kept outside the engine and brought back."""
    cache_bytes: int = 0
    """What a token takes in a slot's cache; 0: unknown, or nothing to speak of."""
    instant: bool = False
    """Computes nothing: its speed says nothing about long prompts."""
    chat_template: str | None = None
    bos_token: str = ""
    eos_token: str = ""
    control_tokens: tuple[str, ...] = ()
    """Texts that tokenise to one control token; a user may type them, and they must stay text."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompt is being evaluated: `processed` of `total` tokens, `cached` of them reused.

    `ms` is what the others took so far by the engine's own clock; None: it does not say.
    """

    total: int
    cached: int
    processed: int
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """More of the answer. `ids` are the tokens as generated; they may be empty, or run ahead of `text`."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The answer ended: at the model's own end or a stop string, or at `max_tokens`."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


EngineEvent = Prefill | Tokens | Done


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker process is to run. Sent to it as JSON."""

    engine: Literal["llamacpp", "transformers", "echo"]
    model: str
    """Name, for logs and `/v1/models`."""
    path: str = ""
    """The weights file, or empty where none is needed."""
    slots: int = 4
    window: int = 2048
    """Tokens per slot."""
    threads: int | None = None
    options: dict[str, Any] | None = None
    """Engine-specific; unknown ones are refused by name."""
    offload_mb: int = 0
    """Room for caches kept outside the engine."""
