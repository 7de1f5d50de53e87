"""`conversations.json` of a ChatGPT export: a list of conversations, each with a `mapping` of nodes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rallychat.messages import Role
from rallychat.store import Imported
from rallychat.transfer.trees import Read, Said, planted, rows, said_in, table, text_of, when

_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant"}
_HIDDEN = frozenset({"user_editable_context", "model_editable_context", "reasoning_recap"})
"""What ChatGPT shows nobody: its instructions about the person, and how long it thought."""

_BETWEEN = "\ue202"
_MARK = re.compile("\ue200([^\ue200\ue201]*)\ue201")
"""Characters for private use, around what the page of ChatGPT draws."""


def read(record: Mapping[str, Any]) -> Read:
    """One conversation of the list."""
    left_out: Counter[str] = Counter()
    nodes: dict[str, tuple[str | None, Said]] = {}
    for name, node in table(record["mapping"], "mapping").items():
        node = table(node, f"mapping.{name}")
        parent = node.get("parent")
        nodes[name] = (parent if isinstance(parent, str) else None, _said(node.get("message"), left_out))
    current = record.get("current_node")
    said, tip = planted(nodes, current if isinstance(current, str) else None, left_out)
    here = record.get("conversation_id") or record.get("id")
    conversation = Imported(
        origin=f"chatgpt:{text_of(here)[:150]}" if here else "",
        title=text_of(record.get("title"))[:200],
        messages=said,
        tip=tip,
        created_at=when(record.get("create_time")),
        updated_at=when(record.get("update_time")),
        archived=record.get("is_archived") is True,
        pinned=record.get("is_starred") is True,
    )
    return Read(conversation, left_out)


def _said(message: Any, left_out: Counter[str]) -> Said:
    if not isinstance(message, dict):
        return Said()
    author, content, about = (message.get(name) or {} for name in ("author", "content", "metadata"))
    role = _ROLES.get(text_of(table(author, "author").get("role")))
    kind = text_of(table(content, "content").get("content_type", "text"))
    hidden = table(about, "metadata").get("is_visually_hidden_from_conversation") is True
    if hidden or kind in _HIDDEN:
        return Said()
    if kind == "thoughts":
        return Said(thought=_thoughts(content))
    text = _text(content, left_out)
    if role is None:
        if text.strip():
            left_out["tool results" if author.get("role") == "tool" else "system messages"] += 1
        return Said()
    if role == "assistant" and message.get("recipient", "all") not in ("all", None):
        left_out["tool calls"] += 1
        return Said()
    if kind not in ("text", "multimodal_text", "code"):
        left_out[f"messages of the kind '{kind[:40]}'"] += 1
        return Said()
    model = text_of(about.get("model_slug"))[:200] or None
    return Said(
        role, said_in(text), model=model if role == "assistant" else None, at=when(message.get("create_time"))
    )


def _text(content: Mapping[str, Any], left_out: Counter[str]) -> str:
    if content.get("content_type") == "code":
        return f"```{text_of(content.get('language')).replace('unknown', '')}\n{text_of(content.get('text'))}\n```"
    said = []
    for part in rows(content.get("parts")):
        if isinstance(part, str):
            said.append(text_of(part))
        elif isinstance(part, dict) and part.get("content_type") == "audio_transcription":
            said.append(text_of(part.get("text")))
        elif part is not None:
            kind = text_of(part.get("content_type")) if isinstance(part, dict) else type(part).__name__
            left_out["images" if kind == "image_asset_pointer" else f"parts of the kind '{kind[:40]}'"] += 1
    return _MARK.sub(lambda mark: _shown(mark[1], left_out), "\n\n".join(filter(None, said)))


def _shown(mark: str, left_out: Counter[str]) -> str:
    """What ChatGPT shows in the place of a mark: a name, a link's words; else a source, which is not in the export."""
    kind, _, rest = mark.partition(_BETWEEN)
    first = rest.partition(_BETWEEN)[0]
    if kind == "url":
        return first
    if kind == "entity":
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            return text_of(json.loads(first)[1])
    left_out["references to sources"] += 1
    return ""


def _thoughts(content: Mapping[str, Any]) -> str:
    thoughts = [thought for thought in rows(content.get("thoughts")) if isinstance(thought, dict)]
    told = (
        "\n\n".join(filter(None, map(text_of, (one.get("summary"), one.get("content"))))) for one in thoughts
    )
    return "\n\n".join(filter(None, told))
