"""`rallychat render`: the exact prompt text a model would see, and nothing else on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.chat import ChatService
from rallychat.errors import InvalidRequest
from rallychat.messages import Message
from rallychat.settings import Settings


class Said(BaseModel):
    """One message of the file."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(BaseModel):
    """The file: what `/export FILE.json` writes."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    messages: list[Said] = Field(min_length=1)

    def as_messages(self) -> list[Message]:
        """The messages as a model gets them, the system prompt first."""
        head = [Message.of("system", self.system)] if self.system is not None else []
        return [*head, *(Message.of(said.role, said.content) for said in self.messages)]


async def render(
    settings: Settings, model: str, file: str, *, family: str | None = None, tokens: bool
) -> int:
    """Print the prompt of `file` ("-": standard input), or its token ids as JSON.

    Raises:
        InvalidRequest: the file cannot be read or is not a conversation.
        TemplateError: the model's template refuses it.
    """
    conversation = read(file)
    async with ChatService.open(settings) as service:
        chosen = await service.bring(model, family=family)
        rendered = await service.render(conversation.as_messages(), model=chosen.id)
        if tokens:
            sys.stdout.write(json.dumps(await service.tokens(rendered, model=chosen.id)) + "\n")
        else:
            sys.stdout.write(rendered.text)
        sys.stdout.flush()
    return 0


def read(file: str) -> Conversation:
    """The conversation in `file`, checked.

    Raises:
        InvalidRequest: it cannot be read, or a field is wrong; the message names it.
    """
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be read: {exc.strerror}.") from exc
    try:
        return Conversation.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"{file}: {f'{where}: ' if where else ''}{first['msg']}.",
            param=where or None,
            hint='it should be {"system": optional, "messages": [{"role": "user", "content": "..."}, ...]}',
        ) from exc
