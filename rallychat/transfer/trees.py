"""What the readers of foreign exports share: a tree of nodes by name becomes messages, parents first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from heapq import heappop, heappush
from typing import Any

from rallychat.errors import InvalidRequest
from rallychat.messages import Part, Reasoning, Role, Text
from rallychat.store import Ending, Imported, ImportedMessage
from rallychat.store.types import Mark


@dataclass(slots=True)
class Said:
    """What one node says. Without `role` it is left out, and what follows it follows its parent."""

    role: Role | None = None
    parts: tuple[Part, ...] = ()
    thought: str = ""
    """What the answers below begin with thinking."""
    model: str | None = None
    at: datetime | None = None
    end: Ending | None = None
    mark: Mark | None = None
    stays: bool = False
    """Also where it says nothing: an answer that failed before its first word."""


@dataclass(slots=True)
class Read:
    """A conversation as read, and what of it could not be taken."""

    conversation: Imported
    left_out: Counter[str] = field(default_factory=Counter)


def planted(
    nodes: Mapping[str, tuple[str | None, Said]], current: str | None, left_out: Counter[str]
) -> tuple[tuple[ImportedMessage, ...], int | None]:
    """Messages from nodes of (parent, said), in their order as far as parents come first; where the view ends."""
    order = {name: at for at, name in enumerate(nodes)}
    children: dict[str | None, list[str]] = {}
    for name, (parent, _) in nodes.items():
        children.setdefault(parent if parent in nodes else None, []).append(name)
    made: list[ImportedMessage] = []
    place: dict[str, int | None] = {}
    waiting: list[tuple[int, str, int | None, str]] = [
        (order[name], name, None, "") for name in children.get(None, [])
    ]
    while waiting:
        _, name, above, thought = heappop(waiting)
        said = nodes[name][1]
        thought = "\n\n".join(filter(None, (thought, said.thought)))
        if said.role is not None and (said.parts or said.stays):
            head: tuple[Part, ...] = (Reasoning(thought),) if thought and said.role == "assistant" else ()
            node = ImportedMessage(said.role, head + said.parts, above, said.model, said.at)
            made.append(replace(node, name=name, end=said.end, mark=said.mark))
            above, thought = len(made) - 1, ""
        place[name] = above
        for child in children.get(name, []):
            heappush(waiting, (order[child], child, above, thought))
    if lost := len(nodes) - len(place):
        left_out["messages that follow each other in a circle"] += lost
    return tuple(made), place.get(current) if current else None


def text_of(value: Any) -> str:
    """A text that can be stored; empty if it is none."""
    if not isinstance(value, str):
        return ""
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")


def said_in(text: str) -> tuple[Part, ...]:
    """One text part, or none where nothing is said."""
    return (Text(text),) if text.strip() else ()


def table(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, if it is an object.

    Raises:
        InvalidRequest: it is not, which names `what`.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{what}' is not an object.")
    return value


def rows(value: Any) -> Iterator[Any]:
    """The items of a list; none of anything else."""
    yield from value if isinstance(value, list) else ()


def when(value: Any) -> datetime | None:
    """A time in seconds (or milli-, micro-, nanoseconds) since 1970, or in ISO 8601; None if it cannot be one."""
    try:
        read = _moment(value)
    except (ValueError, OverflowError, OSError):
        return None
    # in the first and the last year there is a time zone whose clock cannot show it
    return read if read is not None and MINYEAR < read.year < MAXYEAR else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        read = datetime.fromisoformat(value)
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        while abs(value) > 1e11:
            value /= 1000
        return datetime.fromtimestamp(value, UTC)
    return None
