"""Messages as OpenAI's items, and the names of items. One answer is several: what was thought, what was said."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rallychat.errors import NotFound
from rallychat.messages import Part, Reasoning, Text
from rallychat.store import StoredMessage

Status = Literal["in_progress", "completed", "incomplete"]
_NAME = re.compile(r"(msg|rs)_([0-9a-f]{1,36})(?:_(\d{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands: in which message, and which of its thoughts or sayings it is."""

    message_id: str
    kind: Literal["msg", "rs"]
    number: int


def place_of(item_id: str) -> Place:
    """The place an item's name tells.

    Raises:
        NotFound: no item can be called so.
    """
    found = _NAME.fullmatch(item_id)
    if found is None:
        raise NotFound("item", item_id)
    kind, tail, number = found.groups()
    return Place(f"msg_{tail}", "rs" if kind == "rs" else "msg", int(number or 1))


def age_of(item_id: str) -> tuple[str, int, bool]:
    """Sorts items by age, as far as names tell it: what is thought comes before what is said.

    Raises:
        NotFound: no item can be called so.
    """
    place = place_of(item_id)
    return place.message_id, place.number, place.kind == "msg"


def name_of(message_id: str, kind: type[Part], number: int) -> str:
    """The name of the `number`th thought or saying of an answer; the first saying is called as its message."""
    prefix = "rs" if kind is Reasoning else "msg"
    tail = message_id.removeprefix("msg_")
    return f"{prefix}_{tail}" if number == 1 else f"{prefix}_{tail}_{number}"


def items_of(row: StoredMessage) -> list[dict[str, Any]]:
    """What a stored message is in a list of items."""
    if row.role == "assistant":
        return output_of(row.id, row.parts, status=status_of(row))
    content = [{"type": "input_text", "text": part.text} for part in row.parts]
    return [{"type": "message", "id": row.id, "role": row.role, "status": "completed", "content": content}]


def output_of(message_id: str, parts: Sequence[Part], *, status: Status) -> list[dict[str, Any]]:
    """An answer's items; the status is that of the last, what came before it is complete."""
    found = [_item(name, kind, texts) for name, kind, texts, _ in _runs(message_id, parts)]
    for item in found[:-1]:
        item["status"] = "completed"
    if found:
        found[-1]["status"] = status
    return found


def parts_of(row: StoredMessage, place: Place) -> list[int]:
    """The indices of a message's parts that an item is made of.

    Raises:
        NotFound: the message has no such item.
    """
    if row.role != "assistant":
        if place.kind == "msg" and place.number == 1:
            return list(range(len(row.parts)))
    else:
        wanted = Reasoning if place.kind == "rs" else Text
        name = name_of(row.id, wanted, place.number)
        for found, _, _, indices in _runs(row.id, row.parts):
            if found == name:
                return indices
    raise NotFound("item", name_of(row.id, Reasoning if place.kind == "rs" else Text, place.number))


def status_of(row: StoredMessage) -> Status:
    """How far an answer's last item came."""
    if row.status == "running":
        return "in_progress"
    return "completed" if row.finish_reason in (None, "stop") else "incomplete"


def _runs(message_id: str, parts: Sequence[Part]) -> Iterator[tuple[str, type[Part], list[str], list[int]]]:
    """Neighbouring parts of a kind, with their name; empty ones before others hold a place, and are counted alone."""
    numbers = {Text: 0, Reasoning: 0}
    for kind, group in itertools.groupby(enumerate(parts), lambda pair: type(pair[1])):
        numbered = list(group)
        numbers[kind] += 1
        name, texts = name_of(message_id, kind, numbers[kind]), [part.text for _, part in numbered]
        if any(texts) or numbered[-1][0] == len(parts) - 1:
            yield name, kind, texts, [index for index, _ in numbered]


def _item(name: str, kind: type[Part], texts: Sequence[str]) -> dict[str, Any]:
    if kind is Reasoning:
        thought = [{"type": "reasoning_text", "text": text} for text in texts]
        return {"type": "reasoning", "id": name, "summary": [], "content": thought}
    said = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"type": "message", "id": name, "role": "assistant", "content": said}
