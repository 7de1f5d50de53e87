"""What may be asked of a response or put into a conversation: items, and the fields around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rallychat.api.manner import Manner
from rallychat.api.schemas import INT32, MOST_MESSAGES, SEEDS, Asked, Nothing, TextFormat, Zero
from rallychat.catalog.types import Sampling
from rallychat.context.strategies import strategy_named
from rallychat.errors import InvalidRequest
from rallychat.messages import Message, Part, Reasoning, Text
from rallychat.wishes import Wish

MOST_ITEMS = 20
"""Items put into a conversation by one request, as with OpenAI."""


RESPONSES_ACCEPTED_ONLY: Mapping[str, str] = {
    "text": "answers are plain text, so only {'format': {'type': 'text'}} is accepted",
    "reasoning": "models think as they were trained to; leave it out",
    "include": "what there is to include is always included; leave it out",
    "max_tool_calls": "tool calls are not built yet",
    "context_management": "the server manages the context by itself; leave it out",
    "background_options": "leave it out",
    "access_programs": "leave it out",
    "image": "answers are text",
}
"""Fields of OpenAI's Responses that have no effect here, beside those that chat completions have too."""


def _content_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


class InputText(Asked):
    """What goes in."""

    type: Literal["input_text"]
    text: str


class OutputText(Asked):
    """What came out, as a client sends it back, or writes it itself."""

    type: Literal["output_text", "input_text"]
    text: str
    annotations: Nothing = None
    logprobs: Nothing = None


class ReasoningText(Asked):
    """What was thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(Asked):
    """What was thought, in short."""

    type: Literal["summary_text"]
    text: str


_NO_CONTENT = "Input must be a string or a list of text parts"
InputContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[InputText], Field(min_length=1), Tag("<parts>")],
    Discriminator(_content_kind, custom_error_type="content", custom_error_message=_NO_CONTENT),
]
OutputContent = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[OutputText], Field(min_length=1), Tag("<parts>")],
    Discriminator(_content_kind, custom_error_type="content", custom_error_message=_NO_CONTENT),
]


class _Item(Asked):
    id: str | None = Field(None, description="Accepted; items get ids of their own.")
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class _MessageItem(_Item):
    type: Literal["message"] = "message"
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="Accepted, not used.")


class SystemItem(_MessageItem):
    """What the model is told. `developer` is read as `system`."""

    role: Literal["system", "developer"]
    content: InputContent


class UserItem(_MessageItem):
    """What a person said."""

    role: Literal["user"]
    content: InputContent


class AssistantItem(_MessageItem):
    """What a model answered."""

    role: Literal["assistant"]
    content: OutputContent


class ReasoningItem(_Item):
    """What a model thought before the assistant message that follows."""

    type: Literal["reasoning"]
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None


def _item_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type", "message")
    if kind != "message":
        return f"<{kind}>" if isinstance(kind, str) else None
    role = value.get("role")
    return "<system>" if role == "developer" else f"<{role}>" if isinstance(role, str) else None


Item = Annotated[
    Annotated[SystemItem, Tag("<system>")]
    | Annotated[UserItem, Tag("<user>")]
    | Annotated[AssistantItem, Tag("<assistant>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(_item_kind),
]

Input = Annotated[
    Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES), Tag("<parts>")],
    Discriminator(
        _content_kind,
        custom_error_type="content",
        custom_error_message="Input must be a string or a list of items",
    ),
]

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Noted = Annotated[str, Field(max_length=512)]


class ConversationRef(Asked):
    """A conversation by its id."""

    id: Name


Conversation = Annotated[
    Annotated[Name, Tag("<text>")] | Annotated[ConversationRef, Tag("<object>")],
    Discriminator(
        lambda value: "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None,
        custom_error_type="conversation",
        custom_error_message="Input must be a conversation's id, or an object with it",
    ),
]


class TextOptions(Asked):
    """How the answer is written: as text."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Asked):
    """Nothing of this can be chosen."""

    effort: None = None
    summary: None = None
    generate_summary: None = None


class StreamOptions(Asked):
    """How a stream is written."""

    include_obfuscation: bool | None = Field(None, description="Accepted; events are never padded.")


class ResponseRequest(Asked):
    """Body of `POST /v1/responses`."""

    input: Input = Field(description="Text, or messages of which the last is the user's.")
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None, description="If not given: the conversation's, the previous response's, the server's default."
    )
    instructions: str | None = Field(None, description="The system prompt of this response alone.")
    conversation: Conversation | None = Field(None, description="Where input and answer are added.")
    previous_response_id: Name | None = Field(None, description="The response this one follows, as a branch.")
    store: bool | None = Field(None, description="True if not given; false keeps nothing.")
    stream: bool | None = Field(None, description="Server-sent events instead of one JSON object.")
    background: bool | None = Field(None, description="Answer at once with what is to come.")
    max_output_tokens: int | None = Field(None, ge=1, le=INT32, description="Longest answer in tokens.")
    metadata: Metadata | None = Field(None, description="Kept beside the response and given back.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=INT32, description="Extension. 0 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=5, description="Extension. 1 is off.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63, description="Extension. Same seed, same answer.")
    strategy: str | None = Field(
        None, max_length=100, description="Extension. How the context of this response is kept."
    )
    budget: int | None = Field(None, ge=64, le=INT32, description="Extension. Most tokens of its prompt.")
    pin: list[Name] | None = Field(
        None, max_length=MOST_MESSAGES, description="Extension. Items that do not leave its prompt."
    )
    exclude: list[Name] | None = Field(
        None, max_length=MOST_MESSAGES, description="Extension. Items that do not enter its prompt."
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="Extension. Seconds within which its turn must come, or it is refused.",
    )
    elsewhere: bool | None = Field(
        None, description="Extension. Whether it may quote other conversations of whoever asks."
    )
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="'auto' for what is stored, 'disabled' for what is not; each is the default."
    )

    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted, not used.")
    max_tool_calls: None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Nothing = None
    top_logprobs: Zero = None
    moderation: None = None
    prompt: None = None
    context_management: Nothing = None
    background_options: None = None
    prompt_cache_options: None = None
    access_programs: None = None
    image: None = None
    service_tier: Literal["auto", "default"] | None = None
    user: Noted | None = Field(None, description="Given back, not used.")
    safety_identifier: Noted | None = Field(None, description="Given back, not used.")
    prompt_cache_key: Noted | None = Field(
        None, description="Given back, not used: prefixes are always reused."
    )
    prompt_cache_retention: str | None = Field(None, description="Accepted, not used.")

    @property
    def kept(self) -> bool:
        """The answer is stored, and belongs to the server."""
        return self.store is not False

    @property
    def conversation_id(self) -> str | None:
        """The conversation it is to be added to."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    @property
    def wish(self) -> Wish:
        """How the context of this response is to be kept."""
        pin, exclude = tuple(self.pin or ()), tuple(self.exclude or ())
        return Wish(self.strategy, self.budget, pin, exclude, self.elsewhere)

    def sampling(self) -> Sampling:
        """What was asked of the sampler; None where nothing was."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_output_tokens,
            seed=None if self.seed is None else self.seed % SEEDS,
        )

    def messages(self) -> list[Message]:
        """What was said.

        Raises:
            InvalidRequest: its end is not the user's, or fields contradict each other.
        """
        self._consistent()
        if isinstance(self.input, str):
            return [Message.of("user", self.input)]
        said = messages_of(self.input, param="input")
        if said[-1].role != "user":
            raise InvalidRequest("The last item must be the user's message.", param="input")
        return said

    def echo(self, used: Sampling) -> dict[str, Any]:
        """What the response object repeats, and the sampling that is used."""
        names = (
            "instructions",
            "previous_response_id",
            "max_output_tokens",
            "metadata",
            "user",
            "safety_identifier",
            "prompt_cache_key",
        )
        given = {name: getattr(self, name) for name in names}
        facts: dict[str, Any] = {"background": bool(self.background), "store": self.kept}
        facts |= {"temperature": used.temperature, "top_p": used.top_p}
        facts |= {"tool_choice": self.tool_choice or "auto"}
        facts |= {"parallel_tool_calls": self.parallel_tool_calls is not False}
        return given | facts | {"conversation": self.conversation_id}

    def _consistent(self) -> None:
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidRequest(
                "'previous_response_id' and 'conversation' exclude each other.", param="previous_response_id"
            )
        if not self.kept and (self.background or self.conversation is not None):
            name = "background" if self.background else "conversation"
            raise InvalidRequest(
                f"'{name}' needs an answer that is stored.", param=name, hint="leave 'store' out"
            )
        for name in ("strategy", "budget", "pin", "exclude", "elsewhere"):
            if not self.kept and getattr(self, name) is not None:
                raise InvalidRequest(
                    f"'{name}' needs an answer that is stored.", param=name, hint="leave 'store' out"
                )
        if self.strategy is not None:
            strategy_named(self.strategy)
        if self.truncation not in (None, "auto" if self.kept else "disabled"):
            said = (
                "stored conversations are fitted to the window, and say what was left out"
                if self.kept
                else "what is not stored is answered whole or not at all"
            )
            raise InvalidRequest(f"'truncation' cannot be '{self.truncation}': {said}.", param="truncation")


class ConversationRequest(Manner):
    """Body of `POST /v1/conversations`. Beside `items` and `metadata` all are extensions."""

    items: Annotated[list[Item], Field(max_length=MOST_ITEMS)] | None = None
    metadata: Metadata | None = None
    persona: Name | None = Field(
        None, description="Id of one whose system prompt, model and sampling it begins with."
    )


class ConversationUpdate(Asked):
    """Body of `POST /v1/conversations/{conversation_id}`."""

    metadata: Metadata | None


class ItemsRequest(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/items`."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS)]


def messages_of(items: Sequence[Item], *, param: str) -> list[Message]:
    """The messages that items are.

    Raises:
        InvalidRequest: a thought that no assistant's message follows.
    """
    said: list[Message] = []
    thought: list[Part] = []
    for item in items:
        if isinstance(item, ReasoningItem):
            texts = [part.text for part in item.content or item.summary]
            thought += [Reasoning("".join(texts))] if any(texts) else []
            continue
        if thought and not isinstance(item, AssistantItem):
            break
        texts = [item.content] if isinstance(item.content, str) else [part.text for part in item.content]
        role = "system" if item.role == "developer" else item.role
        said.append(Message(role, (*thought, *map(Text, texts))))
        thought = []
    if thought or not said:
        raise InvalidRequest(
            "A reasoning item must be followed by the assistant's message it belongs to.", param=param
        )
    return said
