"""What our own format says of a conversation beside its texts, and how it may: a stranger may have written the file."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.errors import InvalidRequest
from rallychat.messages import FinishReason
from rallychat.store.types import Mark, MemoryKind

MOST_MEMORIES: Final = 10_000
"""Versions of one conversation's memory."""
_Shape = TypeVar("_Shape", bound=BaseModel)
_Tokens = Annotated[int, Field(ge=0, lt=2**31)]
_Milliseconds = Annotated[float, Field(ge=0, lt=1e12)]
_Note = Annotated[str, Field(max_length=512)]


class _Given(BaseModel):
    """Each field may be left out, as older files do; what is not known here is passed over, as newer ones have it."""

    model_config = ConfigDict(strict=True, frozen=True)


class UsageGiven(_Given):
    """`usage` of an answer."""

    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    cached_tokens: _Tokens = 0
    reasoning_tokens: _Tokens = 0


class TimingsGiven(_Given):
    """`timings` of an answer."""

    queued_ms: _Milliseconds = 0.0
    first_token_ms: _Milliseconds = 0.0
    total_ms: _Milliseconds = 0.0


class MessageGiven(_Given):
    """One of `messages`."""

    status: Literal["complete", "running"] = "complete"
    finish_reason: FinishReason | None = None
    error: str | None = None
    usage: UsageGiven | None = None
    timings: TimingsGiven | None = None
    mark: Mark | None = None


class MemoryGiven(_Given):
    """One of `memories`: messages are called as they are in the file."""

    kind: MemoryKind
    text: str
    until: str
    covers: list[str] = []
    edited_by: Literal["rules", "model", "user"] = "rules"
    why: str = ""
    active: bool = True


class ConversationGiven(_Given):
    """A conversation, and how its context is kept."""

    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], _Note], Field(max_length=16)] | None = None
    strategy: str | None = None
    budget: Annotated[int, Field(ge=64, lt=2**31)] | None = None
    elsewhere: bool | None = None


def checked(shape: type[_Shape], value: Any, name: str = "") -> _Shape:
    """`value` as such a shape.

    Raises:
        InvalidRequest: it is none; the sentence names the field, below `name`.
    """
    try:
        return shape.model_validate(value)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, (*([name] if name else []), *first["loc"])))
        raise InvalidRequest(f"'{where}': {first['msg']}.") from exc
