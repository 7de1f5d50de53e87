"""A conversation as a file that people and programs can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rallychat.errors import InvalidRequest
from rallychat.store import Conversation, StoredMessage


def write_export(name: str, conversation: Conversation, rows: Sequence[StoredMessage]) -> Path:
    """Write one branch to a file: JSON if it ends in .json, else Markdown. What is there is not overwritten.

    Raises:
        InvalidRequest: the file is there already, or cannot be written.
    """
    path = Path(name).expanduser()
    text = as_json(conversation, rows) if path.suffix == ".json" else as_markdown(conversation, rows)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as exc:
        raise InvalidRequest(f"{path} is there already.", hint="choose another name") from exc
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be written: {exc.strerror}.") from exc
    return path


def as_json(conversation: Conversation, rows: Sequence[StoredMessage]) -> str:
    """What `rallychat render` and OpenAI's API read: system prompt and messages."""
    messages = [{"role": row.role, "content": row.text} for row in rows]
    head = {"system": conversation.system} if conversation.system else {}
    return json.dumps({**head, "messages": messages}, ensure_ascii=False, indent=2) + "\n"


def as_markdown(conversation: Conversation, rows: Sequence[StoredMessage]) -> str:
    """Title, then each message under the name of who said it."""
    parts = [f"# {conversation.title or 'Conversation'}"]
    if conversation.system:
        parts.append(f"*System:* {conversation.system}")
    for row in rows:
        who = "You" if row.role == "user" else (row.model or "Model")
        parts.append(f"## {who}\n\n{row.text.strip()}")
    return "\n\n".join(parts) + "\n"
