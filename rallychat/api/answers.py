"""What is answered, as OpenAPI describes it. Routes write the bytes themselves; tests hold both together."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Answer):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    """Reused from the engine's cache, not evaluated again."""


class CompletionTokensDetails(_Answer):
    """What the answer's tokens were."""

    reasoning_tokens: int
    """Thought, not said (tags included)."""


class UsageOut(_Answer):
    """What an answer cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AssistantOut(_Answer):
    """The answer; `reasoning_content` only where the model thought aloud."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    reasoning_content: str | None = None


class ChatChoice(_Answer):
    """The one choice."""

    index: Literal[0]
    message: AssistantOut
    logprobs: None
    finish_reason: Literal["stop", "length"]


class SegmentOut(_Answer):
    """A stretch of the prompt; `message` is the message's index, or its id in a conversation."""

    kind: Literal["system", "user", "assistant", "memory", "retrieved", "elsewhere", "generation"]
    message: str | None
    tokens: int
    score: float | None
    by: Literal["words", "meaning", "both"] | None


class ContextOut(_Answer):
    """Extension: what went into the prompt. Each message is kept, compacted, dropped or excluded."""

    strategy: str
    window: int
    budget: int
    high_mark: int
    budget_why: str
    prompt_tokens: int
    reused_tokens: int
    evaluated_tokens: int
    segments: list[SegmentOut]
    kept: list[str]
    compacted: list[str]
    retrieved: list[str]
    elsewhere: list[str]
    dropped: list[str]
    left_tokens: dict[str, int]
    excluded: list[str]
    pinned: list[str]
    why: str
    diverged_at: int | None
    divergence: str
    memory: int
    background_ms: float


class ChatCompletion(_Answer):
    """Answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageOut
    context: ContextOut | None = None
    """Extension."""


class TextChoice(_Answer):
    """The one choice."""

    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Completion(_Answer):
    """Answer of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageOut


class ModelFacts(_Answer):
    """Our own words about a model; sizes in bytes, the window in tokens."""

    name: str
    state: Literal["absent", "downloading", "ready", "loading", "loaded", "unavailable"]
    note: str
    parameters: str
    quantization: str
    license: str
    description: str
    url: str
    window: int
    size: int | None
    memory: int | None


class ModelOut(_Answer):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    rallychat: ModelFacts


class ModelList(_Answer):
    """Answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelOut]


class ErrorOut(_Answer):
    """What went wrong."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: str


class ErrorBody(_Answer):
    """Every error, in OpenAI's shape."""

    error: ErrorOut


class Health(_Answer):
    """The process answers."""

    status: Literal["ok"]


class Check(_Answer):
    """One thing readiness depends on; `detail` says why not."""

    ok: bool
    detail: str


class Readiness(_Answer):
    """Answer of `GET /readyz`."""

    status: Literal["ready", "not_ready"]
    server: Check
    store: Check
    model: Check
