"""The /commands about the context: how a conversation is kept short, what is remembered, what is pinned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rich.table import Table

from rallychat.cli.options import literal
from rallychat.context.strategies import names
from rallychat.errors import InvalidRequest, NotFound
from rallychat.store import StoredMessage

if TYPE_CHECKING:
    from rallychat.cli.chat import Talk

_FIRST = 60
"""Characters of a message that a list shows."""


async def strategy(talk: Talk, name: str) -> None:
    """Show or choose how the conversation is kept short; `default` leaves it to the model."""
    if name:
        current = await talk.stored()
        chosen = None if name == "default" else name
        talk.conversation = await talk.service.contexts.set_strategy(current.id, chosen)
    now = talk.conversation.strategy if talk.conversation else None
    talk.console.print(f"{now or 'As the model says'}. There are {', '.join(names())}.", style="dim")


async def elsewhere(talk: Talk, wanted: str) -> None:
    """Show or choose whether other conversations are quoted; `default` leaves it to the server."""
    choices = {"on": True, "off": False, "default": None}
    if wanted:
        if wanted not in choices:
            raise InvalidRequest(f"/elsewhere does not know '{wanted}'.", hint="it is on, off or default")
        current = await talk.stored()
        talk.conversation = await talk.service.contexts.set_elsewhere(current.id, choices[wanted])
    now = talk.conversation.elsewhere if talk.conversation else None
    usual = talk.service.settings.elsewhere
    said = "quoted" if (usual if now is None else now) else "not quoted"
    talk.console.print(
        f"Other conversations are {said}{' (the default)' if now is None else ''}.", style="dim"
    )


async def memory(talk: Talk, what: str) -> None:
    """Show, change or undo what is remembered of the older turns."""
    current = await talk.stored()
    contexts = talk.service.contexts
    held = await contexts.memory(current.id)
    if held is None:
        talk.console.print("Nothing yet: every message still stands in the prompt itself.", style="dim")
        return
    if what == "undo":
        held = await contexts.revert_memory(current.id, version=held.version)
    elif what == "edit":
        changed = await talk.changed(held.text, label="memory> ")
        if changed is not None:
            held = await contexts.edit_memory(current.id, changed, version=held.version)
    elif what:
        raise InvalidRequest(f"/memory does not know '{what}'.", hint="/memory, /memory edit or /memory undo")
    talk.console.print(literal(held.text) if held else "Nothing is remembered any more.", highlight=False)
    if held:
        facts = f"version {held.version}, {held.kind}, by {held.edited_by}, of {len(held.covers)} messages"
        talk.console.print(facts, style="dim")


async def pin(talk: Talk, number: str) -> None:
    """Number the messages, or keep one in the prompt for good; again takes it back."""
    await _mark(talk, number, "pin")


async def exclude(talk: Talk, number: str) -> None:
    """Number the messages, or keep one out of the prompt; again takes it back."""
    await _mark(talk, number, "exclude")


async def _mark(talk: Talk, number: str, mark: Literal["pin", "exclude"]) -> None:
    current = await talk.stored()
    rows = await talk.service.store.path(current.id)
    if not number:
        _numbered(talk, rows)
        return
    if not number.isdecimal() or not 1 <= int(number) <= len(rows):
        raise NotFound("message", number, hint=f"/{mark} shows their numbers")
    row = rows[int(number) - 1]
    taken_back = row.mark == mark
    await talk.service.contexts.mark(row.id, None if taken_back else mark)
    said = {"pin": "pinned", "exclude": "excluded"}[mark]
    talk.console.print(
        f"{number} is {'not ' if taken_back else ''}{said}{' any more' if taken_back else ''}.", style="dim"
    )


def _numbered(talk: Talk, rows: list[StoredMessage]) -> None:
    table = Table.grid(padding=(0, 2))
    for number, row in enumerate(rows, 1):
        first = " ".join(row.text.split())[:_FIRST]
        table.add_row(str(number), row.role, literal(first), f"[dim]{row.mark or ''}[/]")
    talk.console.print(table)
