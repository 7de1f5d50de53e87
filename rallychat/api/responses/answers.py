"""What is answered about responses and conversations, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator

from rallychat.api.answers import ContextOut
from rallychat.api.responses.items import Status
from rallychat.api.responses.objects import ResponseStatus
from rallychat.catalog.types import SamplingFacts


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputTextOut(_Answer):
    """What a person or a system said."""

    type: Literal["input_text"]
    text: str


class OutputTextOut(_Answer):
    """What a model said."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningTextOut(_Answer):
    """What a model thought."""

    type: Literal["reasoning_text"]
    text: str


class MessageOut(_Answer):
    """A message."""

    type: Literal["message"]
    id: str
    role: Literal["user", "system", "assistant"]
    status: Status
    content: list[Annotated[InputTextOut | OutputTextOut, Discriminator("type")]]


class ReasoningOut(_Answer):
    """What a model thought before it spoke."""

    type: Literal["reasoning"]
    id: str
    status: Status
    summary: list[Any]
    content: list[ReasoningTextOut]


ItemOut = Annotated[MessageOut | ReasoningOut, Discriminator("type")]


class ItemList(_Answer):
    """Some items; the first and last id are empty where there are none."""

    object: Literal["list"]
    data: list[ItemOut]
    first_id: str
    last_id: str
    has_more: bool


class ErrorOfResponse(_Answer):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt", "rate_limit_exceeded"]
    message: str


class IncompleteDetails(_Answer):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ConversationRefOut(_Answer):
    """The conversation a response was added to."""

    id: str


class ReasoningSettings(_Answer):
    """Nothing of this can be chosen."""

    effort: None
    summary: None


class TextFormatOut(_Answer):
    """Plain text."""

    type: Literal["text"]


class TextSettings(_Answer):
    """Answers are plain text."""

    format: TextFormatOut


class InputTokensDetails(_Answer):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(_Answer):
    """What the answer's tokens were."""

    reasoning_tokens: int


class ResponseUsage(_Answer):
    """What a response cost, in tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class QueueOut(_Answer):
    """A place in line, 1 is next; and about how many seconds it may take."""

    position: int
    seconds: float | None


class ResponseOut(_Answer):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    background: bool
    completed_at: int | None
    error: ErrorOfResponse | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[ItemOut]
    parallel_tool_calls: bool
    previous_response_id: str | None
    conversation: ConversationRefOut | None
    reasoning: ReasoningSettings
    store: bool
    temperature: float | None
    text: TextSettings
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    context: ContextOut | None
    """Extension."""
    queue: QueueOut | None
    """Extension: where it stands in line while it is `queued`, as far as that is known."""


class ResponseDeleted(_Answer):
    """The response is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ConversationOut(_Answer):
    """A conversation; what stands below `metadata` are our own words."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]
    title: str
    updated_at: int
    pinned: bool
    archived: bool
    folder: str | None
    deleted_at: int | None
    system: str
    model: str | None
    sampling: SamplingFacts


class ConversationList(_Answer):
    """Some conversations, the last active first."""

    object: Literal["list"]
    data: list[ConversationOut]
    first_id: str
    last_id: str
    has_more: bool


class ConversationDeleted(_Answer):
    """The conversation is gone, and its messages with it."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]
