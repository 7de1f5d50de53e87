"""Our own JSON: every branch of each conversation; also a plain list of messages, as OpenAI's API has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Final

from rallychat.catalog.types import SamplingFacts
from rallychat.context import strategies
from rallychat.errors import InvalidRequest
from rallychat.messages import Part, Reasoning, Text, Timings, Usage
from rallychat.store import Ending, Imported, Memory
from rallychat.transfer.shapes import MOST_MEMORIES, ConversationGiven, MemoryGiven, MessageGiven, checked
from rallychat.transfer.trees import Read, Said, planted, rows, table, text_of, when

_OURS: Final = frozenset({"tip", "tip_id"})
"""What only we write of a conversation. A list from elsewhere gives texts alone: its other words are not ours."""


def read(record: Mapping[str, Any]) -> Read:
    """One conversation, as it is exported alone or with everything of a user.

    Raises:
        InvalidRequest: it is not as we write it; the sentence names the field.
    """
    left_out: Counter[str] = Counter()
    about = table(record.get("conversation", record), "conversation")
    is_ours = not _OURS.isdisjoint(about)
    nodes, system, last = _nodes(record["messages"], text_of(about.get("system")), left_out, is_ours=is_ours)
    tip = about.get("tip", about.get("tip_id"))
    made, end = planted(nodes, tip if isinstance(tip, str) else last, left_out)
    given = checked(ConversationGiven, about if is_ours else {})
    strategy = given.strategy
    if strategy is not None and strategy not in strategies.names():
        left_out["strategies that are not known here"] += 1
        strategy = None
    memories = record.get("memories") if is_ours else None
    name = about.get("id")
    conversation = Imported(
        origin=f"rallychat:{text_of(name)[:150]}" if name else "",
        title=text_of(about.get("title"))[:200],
        messages=made,
        tip=end,
        system=system,
        model=text_of(about.get("model"))[:200] or None,
        sampling=checked(SamplingFacts, about.get("sampling") or {}, "sampling").value(),
        created_at=when(about.get("created_at")),
        updated_at=when(about.get("updated_at")),
        pinned=about.get("pinned") is True,
        archived=about.get("archived") is True,
        folder=text_of(about.get("folder"))[:100] or None,
        metadata=given.metadata or {},
        strategy=strategy,
        budget=given.budget,
        elsewhere=given.elsewhere,
        memories=_memories(memories, {one.name for one in made}, left_out),
        deleted_at=when(about.get("deleted_at")) if is_ours else None,
    )
    return Read(conversation, left_out)


def _nodes(
    written: Any, system: str, left_out: Counter[str], *, is_ours: bool
) -> tuple[dict[str, tuple[str | None, Said]], str, str | None]:
    """Messages by name, each with its parent's; the system prompt, and the name of the last message."""
    nodes: dict[str, tuple[str | None, Said]] = {}
    before: str | None = None
    for at, row in enumerate(rows(written)):
        said = table(row, f"messages.{at}")
        if said.get("role") == "system" and not (is_ours or nodes or system):
            system = text_of(said.get("content"))
            continue
        name = said.get("id") if isinstance(said.get("id"), str) else f"#{at}"
        parent = said.get("parent", said.get("parent_id", before))
        if name in nodes:
            raise InvalidRequest(f"'messages.{at}.id' is there twice.")
        if parent is not None and not isinstance(parent, str):
            raise InvalidRequest(f"'messages.{at}.parent' is no text.")
        nodes[str(name)] = (parent, _said(said, at, left_out, is_ours=is_ours))
        before = str(name)
    return nodes, system, before


def _said(row: Mapping[str, Any], at: int, left_out: Counter[str], *, is_ours: bool) -> Said:
    role = row.get("role")
    if role not in ("user", "assistant") and not (is_ours and role == "system"):
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
    said = Said(role, tuple(parts), model=text_of(row.get("model"))[:200] or None)
    said.at = when(row.get("created_at"))
    if is_ours:
        given = checked(MessageGiven, row, f"messages.{at}")
        said.stays, said.mark, said.end = True, given.mark, _ending(given)
    return said


def _ending(given: MessageGiven) -> Ending | None:
    if given.status == "running":
        return Ending("interrupted")
    if given.finish_reason is None:  # older files do not say
        return None
    usage = None if given.usage is None else Usage(**dict(given.usage))
    timings = None if given.timings is None else Timings(**dict(given.timings))
    return Ending(given.finish_reason, given.error, usage, timings)


def _memories(written: Any, there: Set[str], left_out: Counter[str]) -> tuple[Memory, ...]:
    """The versions that are made of messages that are `there`."""
    if written is None:
        return ()
    if not isinstance(written, list) or len(written) > MOST_MEMORIES:
        raise InvalidRequest(f"'memories' is no list of at most {MOST_MEMORIES} versions.")
    found: list[Memory] = []
    for at, one in enumerate(written):
        given = checked(MemoryGiven, one, f"memories.{at}")
        if there >= {given.until, *given.covers}:
            made = {**dict(given), "covers": tuple(given.covers)}
            found.append(Memory(**made, created_at=when(one.get("created_at"))))
        else:
            left_out["memories of messages that are not there"] += 1
    return tuple(found)
