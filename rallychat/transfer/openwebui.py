"""Open WebUI's "Export chats": a list of chats, each with a tree under `chat.history.messages`.

As its `models/chats.py` and `Chat.svelte` write them (versions up to 2026 were looked at). Chats from before there were
branches have a list under `chat.messages` alone.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rallychat.messages import Part, Reasoning
from rallychat.store import Imported
from rallychat.transfer.trees import Read, Said, planted, rows, said_in, table, text_of, when

_FOLD = re.compile(r'<details type="([a-z_]+)"[^<>]*+>')
_FOLD_ENDS = "</details>"
_SUMMARY, _SUMMARY_ENDS = "<summary>", "</summary>"
_QUOTE = re.compile(r"^> ?", re.MULTILINE)


def read(record: Mapping[str, Any]) -> Read:
    """One chat of the list."""
    left_out: Counter[str] = Counter()
    chat = table(record.get("chat", record), "chat")
    if "history" in chat or "messages" not in chat:
        history = table(chat.get("history"), "chat.history")
        nodes = _tree(history, left_out)
    else:
        history, nodes = {}, _row(chat, left_out)
    places = (history.get("currentId"), record.get("current_message_id"), chat.get("currentId"))
    current = next((place for place in places if isinstance(place, str) and place in nodes), None)
    said, tip = planted(nodes, current or next(reversed(nodes), None), left_out)
    if record.get("folder_id"):
        left_out["folders"] += 1
    params = chat.get("params")
    persona = text_of(params.get("system")) if isinstance(params, dict) else ""
    here = record.get("id") or chat.get("id")
    conversation = Imported(
        origin=f"openwebui:{text_of(here)[:150]}" if here else "",
        title=text_of(record.get("title") or chat.get("title"))[:200],
        messages=said,
        tip=tip,
        system=text_of(chat.get("system")) or persona,
        created_at=when(record.get("created_at") or chat.get("timestamp")),
        updated_at=when(record.get("updated_at")),
        archived=record.get("archived") is True,
        pinned=record.get("pinned") is True,
    )
    return Read(conversation, left_out)


def _tree(history: Mapping[str, Any], left_out: Counter[str]) -> dict[str, tuple[str | None, Said]]:
    """Each message and its parent."""
    nodes: dict[str, tuple[str | None, Said]] = {}
    for name, node in table(history.get("messages"), "chat.history.messages").items():
        node = table(node, f"chat.history.messages.{name}")
        parent = node.get("parentId")
        nodes[name] = (parent if isinstance(parent, str) else None, _said(node, left_out))
    return nodes


def _row(chat: Mapping[str, Any], left_out: Counter[str]) -> dict[str, tuple[str | None, Said]]:
    """The same of messages that follow one another."""
    nodes: dict[str, tuple[str | None, Said]] = {}
    for number, node in enumerate(rows(chat.get("messages"))):
        before = str(number - 1) if number else None
        nodes[str(number)] = (before, _said(table(node, f"chat.messages.{number}"), left_out))
    return nodes


def _said(node: Mapping[str, Any], left_out: Counter[str]) -> Said:
    for file in rows(node.get("files")):
        is_image = isinstance(file, dict) and file.get("type") == "image"
        left_out["images" if is_image else "files"] += 1
    if node.get("role") not in ("user", "assistant"):
        left_out[f"messages of the role '{text_of(node.get('role'))[:40]}'"] += 1
        return Said()
    if isinstance(node.get("content"), list):
        said = [part for part in node["content"] if isinstance(part, dict) and part.get("type") == "text"]
        left_out["parts that are no text"] += len(node["content"]) - len(said)
        content = "\n\n".join(text_of(part.get("text")) for part in said)
    else:
        content = text_of(node.get("content"))
    is_user = node["role"] == "user"
    parts = said_in(content) if is_user else _answer(content, left_out)
    model = None if is_user else text_of(node.get("model"))[:200] or None
    return Said("user" if is_user else "assistant", parts, model=model, at=when(node.get("timestamp")))


def _answer(content: str, left_out: Counter[str]) -> tuple[Part, ...]:
    """An answer, whose thoughts and tool calls are folded into it as HTML."""
    parts: list[Part] = []
    done = 0
    for fold in _FOLD.finditer(content):
        if fold.start() < done or fold[1] not in ("reasoning", "tool_calls", "code_interpreter"):
            continue
        if (end := content.find(_FOLD_ENDS, fold.end())) < 0:
            break
        parts += said_in(content[done : fold.start()])
        if fold[1] == "reasoning":
            thought = _thought(content[fold.end() : end])
            parts += [Reasoning(thought)] if thought else []
        else:
            left_out["tool calls"] += 1
        done = _after(content, end + len(_FOLD_ENDS))
    return (*parts, *said_in(content[done:]))


def _after(content: str, at: int) -> int:
    """Where text goes on behind a fold's end."""
    while content.startswith("\n", at):
        at += 1
    return at


def _thought(inside: str) -> str:
    """What a fold holds, but for its heading."""
    head, opens, rest = inside.partition(_SUMMARY)
    _, closes, after = rest.partition(_SUMMARY_ENDS)
    told = head + after if opens and closes else inside
    return _QUOTE.sub("", html.unescape(told)).strip()  # newer versions escape the marks of the quote, too
