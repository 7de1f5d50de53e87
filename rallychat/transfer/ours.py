"""Our own JSON: every branch of each conversation; also a plain list of messages, as OpenAI's API has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rallychat.catalog.types import SamplingFacts
from rallychat.errors import InvalidRequest
from rallychat.messages import Part, Reasoning, Text
from rallychat.store import Imported
from rallychat.transfer.trees import Read, Said, planted, rows, table, text_of, when


def read(record: Mapping[str, Any]) -> Read:
    """One conversation, as it is exported alone or with everything of a user.

    Raises:
        InvalidRequest: it is not as we write it; the sentence names the field.
    """
    left_out: Counter[str] = Counter()
    said_here = rows(record["messages"])
    record = table(record.get("conversation", record), "conversation")
    nodes: dict[str, tuple[str | None, Said]] = {}
    system = text_of(record.get("system"))
    before: str | None = None
    for at, row in enumerate(said_here):
        said = table(row, f"messages.{at}")
        if said.get("role") == "system" and not nodes and not system:
            system = text_of(said.get("content"))
            continue
        name = said.get("id") if isinstance(said.get("id"), str) else f"#{at}"
        parent = said.get("parent", said.get("parent_id", before))
        if name in nodes:
            raise InvalidRequest(f"'messages.{at}.id' is there twice.")
        if parent is not None and not isinstance(parent, str):
            raise InvalidRequest(f"'messages.{at}.parent' is no text.")
        nodes[str(name)] = (parent, _said(said, at, left_out))
        before = str(name)
    tip = record.get("tip", record.get("tip_id"))
    made, end = planted(nodes, tip if isinstance(tip, str) else before, left_out)
    try:
        sampling = SamplingFacts.model_validate(record.get("sampling") or {}).value()
    except ValidationError as exc:
        first = exc.errors()[0]
        raise InvalidRequest(f"'sampling.{'.'.join(map(str, first['loc']))}': {first['msg']}.") from exc
    name = record.get("id")
    conversation = Imported(
        origin=f"rallychat:{text_of(name)[:150]}" if name else "",
        title=text_of(record.get("title"))[:200],
        messages=made,
        tip=end,
        system=system,
        model=text_of(record.get("model"))[:200] or None,
        sampling=sampling,
        created_at=when(record.get("created_at")),
        updated_at=when(record.get("updated_at")),
        pinned=record.get("pinned") is True,
        archived=record.get("archived") is True,
        folder=text_of(record.get("folder"))[:100] or None,
    )
    return Read(conversation, left_out)


def _said(row: Mapping[str, Any], at: int, left_out: Counter[str]) -> Said:
    role = row.get("role")
    if role not in ("user", "assistant"):
        left_out[f"messages of the role '{text_of(role)[:40]}'"] += 1
        return Said()
    parts: list[Part] = []
    content = row.get("parts", row.get("content"))
    if isinstance(content, str):
        content = [{"kind": "text", "text": content}]
    for part in rows(content):
        kind = table(part, f"messages.{at}.parts").get("kind", part.get("type"))
        text = text_of(part.get("text"))
        if kind == "reasoning":
            parts.append(Reasoning(text))
        elif kind in ("text", "input_text", "output_text"):
            parts.append(Text(text))
        else:
            left_out[f"parts of the kind '{text_of(kind)[:40]}'"] += 1
    model = text_of(row.get("model"))[:200] or None
    return Said(
        "user" if role == "user" else "assistant", tuple(parts), model=model, at=when(row.get("created_at"))
    )
