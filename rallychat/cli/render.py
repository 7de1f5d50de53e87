"""`rallychat render`: the exact prompt text a model would see, and nothing else on standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat.chat import ChatService
from rallychat.cli.options import printable
from rallychat.errors import InvalidRequest
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.signals import interruptible
from rallychat.transfer.exporting import FORMAT
from rallychat.transfer.ours import read as read_ours


class Said(BaseModel):
    """One message of the file."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(BaseModel):
    """The file, as OpenAI's API has conversations."""

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
            sys.stdout.write(printable(rendered.text) if sys.stdout.isatty() else rendered.text)
        sys.stdout.flush()
    return 0


def read(file: str) -> Conversation:
    """The conversation in `file`, checked: messages, or what `/export FILE.json` writes.

    Raises:
        InvalidRequest: it cannot be read, or a field is wrong; the message names it.
    """
    try:
        with interruptible():
            raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise InvalidRequest(f"{file} cannot be read: {exc.strerror}.") from exc
    try:
        return exported(raw) or Conversation.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"{file}: {f'{where}: ' if where else ''}{first['msg']}.",
            param=where or None,
            hint='it should be {"system": optional, "messages": [{"role": "user", "content": "..."}, ...]}',
        ) from exc


def exported(raw: bytes) -> Conversation | None:
    """The branch in view of the one conversation of our own export; None: it is something else.

    Raises:
        InvalidRequest: there are several, or it is not as we write it.
    """
    try:
        whole = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        return None
    held = whole.get("conversations")
    if not isinstance(held, list) or len(held) != 1 or not isinstance(held[0], dict):
        raise InvalidRequest(
            "The export holds more than one conversation, or none.", hint="/export writes one"
        )
    brought = read_ours(held[0]).conversation
    branch, at = [], brought.tip
    while at is not None:
        node = brought.messages[at]
        branch.append(Said(role=node.role, content=Message(node.role, node.parts).text))
        at = node.parent
    return Conversation(system=brought.system or None, messages=branch[::-1])
