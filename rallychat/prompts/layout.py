"""Which text goes into which row of a chat template: the system prompt and the memory of older turns included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rallychat.catalog.types import MemoryPlace
from rallychat.messages import Message

GAP = "\n\n"
"""Between the system prompt, the memory and what follows them in the same row."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Text that somebody wrote: `message` is the index of the message, None for the memory."""

    message: int | None
    text: str
    answer: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `messages` as a template sees it: glue, and indices of stretches, joined."""

    role: str
    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a template is given. `memory` is the stretch of its variable of that name, if it has one."""

    stretches: tuple[Stretch, ...]
    rows: tuple[Row, ...]
    memory: int | None = None

    def variables(self, texts: Sequence[str]) -> dict[str, object]:
        """The template's variables, with `texts` in the place of the stretches' own."""
        rows = [
            {
                "role": row.role,
                "content": "".join(part if isinstance(part, str) else texts[part] for part in row.parts),
            }
            for row in self.rows
        ]
        return {"messages": rows, "memory": "" if self.memory is None else texts[self.memory]}


def plain(messages: Sequence[Message]) -> Layout:
    """Every message in a row of its own."""
    return Layout(
        tuple(Stretch(i, m.text, m.role == "assistant") for i, m in enumerate(messages)),
        tuple(Row(m.role, (i,)) for i, m in enumerate(messages)),
    )


def with_memory(
    messages: Sequence[Message],
    memory: str,
    place: MemoryPlace,
    *,
    takes_system: Callable[[], bool],
    has_variable: bool,
) -> Layout:
    """Every message in its row, the memory in the template's variable, the system prompt, or before what follows.

    Where the template has no system role, the system prompt goes before the first message, as authors do it.
    """
    first_is_system = messages[0].role == "system"
    if not memory and (not first_is_system or takes_system()):
        return plain(messages)
    stretches = [Stretch(i, m.text, m.role == "assistant") for i, m in enumerate(messages)]
    rows = [Row(m.role, (i + 1 if memory and i >= first_is_system else i,)) for i, m in enumerate(messages)]
    head = [rows.pop(0).parts] if first_is_system else []
    if memory:
        stretches.insert(len(head), Stretch(None, memory))
        if not has_variable:
            head.append((f"{place.label}\n" if place.label else "", len(head)))
    in_system = takes_system()
    system = head if in_system and place.place != "preamble" else head[: int(first_is_system and in_system)]
    before = head[len(system) :]
    if system:
        rows.insert(0, Row("system", _joined(system)))
    if before:
        at = 1 if system else 0
        first = rows.pop(at) if at < len(rows) else Row("user", ())
        rows.insert(at, Row(first.role, _joined([*before, first.parts] if first.parts else before)))
    return Layout(tuple(stretches), tuple(rows), int(first_is_system) if memory and has_variable else None)


def _joined(blocks: Sequence[tuple[str | int, ...]]) -> tuple[str | int, ...]:
    parts: list[str | int] = []
    for block in blocks:
        parts += [GAP, *block] if parts else block
    return tuple(parts)
