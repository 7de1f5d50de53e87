"""What may be asked, and what is answered: OpenAI's objects as far as we keep their promise.

A field is either obeyed, or stands here with the only values that change nothing; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rallychat.catalog.types import Sampling
from rallychat.errors import InvalidRequest
from rallychat.messages import Message, Part, Reasoning, Text

INT32 = 2**31 - 1
MOST_MESSAGES = 10_000
"""More than any window holds; rendering ten times as many would keep everybody waiting for seconds."""
SEEDS = 2**32 - 1
"""Seeds an engine knows; larger ones, and negative ones, are folded into this many."""

ACCEPTED_ONLY: Mapping[str, str] = {
    "n": "one answer a request, so only 1 is accepted",
    "tools": "tool calls are not built yet",
    "tool_choice": "tool calls are not built yet, so only 'none' and 'auto' are accepted",
    "functions": "tool calls are not built yet",
    "function_call": "tool calls are not built yet, so only 'none' and 'auto' are accepted",
    "response_format": "answers are plain text, so only {'type': 'text'} is accepted",
    "logprobs": "token probabilities are not returned",
    "top_logprobs": "token probabilities are not returned",
    "logit_bias": "single tokens cannot be favoured",
    "presence_penalty": "use 'repetition_penalty'; only 0 is accepted",
    "frequency_penalty": "use 'repetition_penalty'; only 0 is accepted",
    "modalities": "answers are text, so only ['text'] is accepted",
    "audio": "answers are text",
    "prediction": "leave it out",
    "reasoning_effort": "leave it out",
    "verbosity": "only 'medium' is accepted",
    "web_search_options": "leave it out",
    "moderation": "answers are not moderated",
    "prompt_cache_options": "prefixes are always reused; leave it out",
    "service_tier": "only 'auto' and 'default' are accepted",
    "store": "chat completions are not stored",
    "echo": "the answer does not repeat the prompt",
    "best_of": "one answer a request, so only 1 is accepted",
    "suffix": "text is only continued, not filled in",
}
"""Fields of OpenAI's that have no effect here, and what to say to a value that would need one."""

ROLES_REFUSED: Mapping[str, str] = {
    "tool": "tool calls are not built yet",
    "function": "tool calls are not built yet",
}

TAGS = frozenset(
    f"<{name}>"
    for name in (
        "text",
        "parts",
        "ids",
        "texts",
        "lists",
        "object",
        "system",
        "user",
        "assistant",
        "reasoning",
    )
)
"""Names of union branches: they appear in pydantic's error locations and in no request."""

Nothing = Annotated[list[Any], Field(max_length=0)] | None
Off = Literal[False] | None
Zero = Annotated[float, Field(ge=0, le=0)] | None
One = Annotated[int, Field(ge=1, le=1)] | None


class Asked(BaseModel):
    """Strict, frozen, and closed: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(Asked):
    """One text part of a message."""

    type: Literal["text"]
    text: str


def _content_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<parts>")],
    Discriminator(
        _content_kind,
        custom_error_type="content",
        custom_error_message="Input must be a string or a list of text parts",
    ),
]


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class SystemMessage(Asked):
    """What the model is told before the conversation. `developer` is read as `system`."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = Field(None, description="Accepted; models are not told.")

    def message(self) -> Message:
        """The same as a model sees it."""
        return Message.of("system", _text(self.content))


class UserMessage(Asked):
    """What a person said."""

    role: Literal["user"]
    content: Content
    name: str | None = Field(None, description="Accepted; models are not told.")

    def message(self) -> Message:
        """The same as a model sees it."""
        return Message.of("user", _text(self.content))


class AssistantMessage(Asked):
    """What a model answered, as a client sends it back."""

    role: Literal["assistant"]
    content: Content
    reasoning_content: str | None = Field(None, description="Given back as it came; the template decides.")
    name: str | None = Field(None, description="Accepted; models are not told.")
    refusal: None = None
    audio: None = None
    annotations: Nothing = None
    tool_calls: Nothing = None
    function_call: None = None

    def message(self) -> Message:
        """The same as a model sees it."""
        said: tuple[Part, ...] = (Text(_text(self.content)),)
        thought: tuple[Part, ...] = (Reasoning(self.reasoning_content),) if self.reasoning_content else ()
        return Message("assistant", thought + said)


def _role(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return "<system>" if role == "developer" else f"<{role}>" if isinstance(role, str) else None


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    Discriminator(_role),
]

StopString = Annotated[str, Field(min_length=1, max_length=256)]


Stop = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=16), Tag("<parts>")],
    Discriminator(
        _content_kind,
        custom_error_type="stop",
        custom_error_message="Input must be a string or a list of strings",
    ),
]


class StreamOptions(Asked):
    """How a stream is written."""

    include_usage: bool | None = Field(None, description="A last chunk without choices carries the usage.")
    include_obfuscation: bool | None = Field(None, description="Accepted; chunks are never padded.")


class Generation(Asked):
    """What both completion routes understand."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None, description="Id of `GET /v1/models`; the server's default model if not given."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=INT32, description="Extension. 0 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=5, description="Extension. 1 is off.")
    max_tokens: int | None = Field(None, ge=1, le=INT32, description="Longest answer in tokens.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63, description="Same seed, same answer.")
    stop: Stop | None = Field(None, description="The answer ends before any of these.")
    stream: bool | None = Field(None, description="Server-sent events instead of one JSON object.")
    stream_options: StreamOptions | None = None
    timeout: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="Extension. Seconds within which its turn must come, or it is refused.",
    )

    n: One = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: str | None = Field(None, description="Accepted, not used.")

    @property
    def usage_wanted(self) -> bool:
        """The stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(self, max_tokens: int | None) -> Sampling:
        stop = None if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=max_tokens,
            seed=None if self.seed is None else self.seed % SEEDS,
            stop=stop,
        )


class TextFormat(Asked):
    """The one response format there is."""

    type: Literal["text"]


MessageIndex = Annotated[int, Field(ge=0, le=MOST_MESSAGES)]


class ChatCompletionRequest(Generation):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(
        min_length=1, max_length=MOST_MESSAGES, description="The last one must not be the assistant's."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=INT32, description="The same as max_tokens; the smaller counts if both are given."
    )

    strategy: str | None = Field(
        None,
        max_length=100,
        description="Extension. What to do where the messages do not fit: full, last_n, summary, ledger, facts, "
        "hybrid. Without it that is an error.",
    )
    budget: int | None = Field(
        None, ge=64, le=INT32, description="Extension, with strategy. Most tokens of the prompt."
    )
    pin: list[MessageIndex] | None = Field(
        None, description="Extension, with strategy. Indices of messages that never leave the prompt."
    )
    exclude: list[MessageIndex] | None = Field(
        None, description="Extension, with strategy. Indices of messages that never enter it."
    )

    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted, not used.")
    functions: Nothing = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    logprobs: Off = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None
    moderation: None = None
    prompt_cache_options: None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Off = None
    metadata: dict[str, str] | None = Field(None, description="Accepted, not used.")
    safety_identifier: str | None = Field(None, description="Accepted, not used.")
    prompt_cache_key: str | None = Field(None, description="Accepted, not used: prefixes are always reused.")
    prompt_cache_retention: str | None = Field(None, description="Accepted, not used.")

    @property
    def context(self) -> Mapping[str, Any] | None:
        """How the context is to be kept, where a strategy is named.

        Raises:
            InvalidRequest: something is asked of a strategy, and none is named; an index is beyond the messages.
        """
        marks = {"pin": self.pin, "exclude": self.exclude}
        for name, value in {"budget": self.budget, **marks}.items():
            if self.strategy is None and value is not None:
                raise InvalidRequest(
                    f"'{name}' needs a strategy.", param=name, hint="name one: strategy, 'hybrid' for example"
                )
        for name, indices in marks.items():
            if beyond := [index for index in indices or () if index >= len(self.messages)]:
                raise InvalidRequest(f"'{name}' names message {beyond[0]}, which is not there.", param=name)
        if self.strategy is None:
            return None
        named = {name: tuple(indices or ()) for name, indices in marks.items()}
        return {"strategy": self.strategy, "budget": self.budget, **named}

    def sampling(self) -> Sampling:
        """What was asked of the sampler; None where nothing was."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return self._sampling(min(limits, default=None))


TokenId = Annotated[int, Field(ge=0, le=INT32)]
PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1)]


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "<texts>" if isinstance(first, str) else "<lists>" if isinstance(first, list) else "<ids>"


Prompt = Annotated[
    Annotated[PromptText, Tag("<text>")]
    | Annotated[PromptIds, Tag("<ids>")]
    | Annotated[list[PromptText], Field(min_length=1, max_length=1), Tag("<texts>")]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=1), Tag("<lists>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt",
        custom_error_message="Input must be a string, a list of token ids, or a list of exactly one of these",
    ),
]


class CompletionRequest(Generation):
    """Body of `POST /v1/completions`."""

    prompt: Prompt = Field(description="Text or token ids, or a list of exactly one of these.")

    echo: Off = None
    best_of: One = None
    suffix: None = None
    logprobs: None = None

    def sampling(self) -> Sampling:
        """What was asked of the sampler; as with OpenAI, 16 tokens where no limit was given."""
        return self._sampling(self.max_tokens or 16)

    def text_or_ids(self) -> str | list[int]:
        """The one prompt."""
        if isinstance(self.prompt, str):
            return self.prompt
        first = self.prompt[0]
        if isinstance(first, int):
            return [item for item in self.prompt if isinstance(item, int)]
        return first
