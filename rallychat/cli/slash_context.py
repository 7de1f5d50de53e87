"""The /commands about the context: what the model saw, how a conversation is kept short, what is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from rallychat.cli.options import literal, printable
from rallychat.context.strategies import names
from rallychat.errors import InvalidRequest, NotFound
from rallychat.store import Conversation, StoredMessage
from rallychat.ui.context_view import ContextView, MemoryVersion, MessageLine
from rallychat.ui.inspecting import inspected
from rallychat.ui.prompt_bar import NAMES, PromptBar

if TYPE_CHECKING:
    from rallychat.cli.chat import Talk

_FIRST = 60
"""Characters of a message that a list shows."""
_MOST = 20
"""Messages of a kind that /context shows; the newest."""


async def context(talk: Talk, text: str) -> None:
    """What the model saw for the last answer: its report, or the exact text."""
    current = begun(talk)
    if text == "full":
        seen = await talk.service.inspect(current.id)
        talk.console.print(printable(seen.text), markup=False, highlight=False, soft_wrap=True)
        return
    if text:
        raise InvalidRequest(f"/context does not know '{text}'.", hint="/context, or /context full")
    view = await inspected(talk.service, current.id)
    if view is None or view.report is None:
        talk.console.print("Nothing was answered yet.", style="dim")
        return
    _print_report(talk.console, view)


def _print_report(console: Console, view: ContextView) -> None:
    """As the inspector of the page draws it."""
    if view.bar:
        console.print(_against_budget(view.bar), highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, value in view.numbers:
        table.add_row(name, value)
    counted: Counter[str] = Counter()
    for segment in view.report.segments if view.report else ():
        counted[segment.kind] += segment.tokens
    table.add_row("Parts", ", ".join(f"{NAMES[kind]} {tokens:,}" for kind, tokens in counted.items()))
    console.print(table)
    if view.divergence:
        console.print(f"The prompt was read anew because {literal(view.divergence)}.", highlight=False)
    _print_lines(console, "word by word in the prompt", view.kept)
    for fate in view.fates:
        _print_lines(console, fate.title, fate.lines)
    if view.why:
        console.print(f"{view.strategy}: {literal(view.why)}.", style="dim", highlight=False)
    console.print(f"{_remembered(view)} /context full prints the exact text.", style="dim", highlight=False)


def _against_budget(bar: PromptBar) -> str:
    mark = f"; older turns are compacted from {bar.high_mark:,} on" if bar.high_mark else ""
    why = f" Why: {literal(bar.why)}." if bar.why else ""
    return f"{bar.prompt:,} of {bar.budget:,} tokens{mark}.{why} The window is {bar.window:,} tokens."


def _remembered(view: ContextView) -> str:
    version = view.report.memory if view.report else 0
    return f"Version {version} of the memory stood in the prompt." if version else "No memory stood in it."


def _print_lines(console: Console, title: str, lines: Sequence[MessageLine]) -> None:
    if not lines:
        return
    console.print(f"[bold]{len(lines)} message{'s' if len(lines) > 1 else ''} {title}[/]", highlight=False)
    if len(lines) > _MOST:
        console.print(f"[dim]  … and {len(lines) - _MOST} before these[/]", highlight=False)
    table = Table.grid(padding=(0, 2))
    for line in lines[-_MOST:]:
        score = "" if line.score is None else f"score {line.score:.2f} {line.by}"
        table.add_row(f"  {line.role}", literal(line.text), f"[dim]{score}[/]")
    console.print(table)


def begun(talk: Talk) -> Conversation:
    """The conversation. Raises InvalidRequest where nothing was said in it yet."""
    if talk.conversation is None:
        raise InvalidRequest("This conversation has no messages yet.")
    return talk.conversation


async def strategy(talk: Talk, name: str) -> None:
    """Show or choose how the conversation is kept short; `default` leaves it to the model."""
    if name:
        current = await talk.stored()
        chosen = None if name == "default" else name
        talk.conversation = await talk.service.contexts.set_strategy(current.id, chosen)
    now = talk.conversation.strategy if talk.conversation else None
    model = talk.service.resolve(talk.model or (talk.conversation.model if talk.conversation else None))
    usual = talk.service.contexts.strategy(None, model).name
    talk.console.print(f"{now or f'{usual} (the default)'}. There are {', '.join(names())}.", style="dim")


async def budget(talk: Talk, tokens: str) -> None:
    """Show or choose how many tokens a prompt may have; `default` leaves it to the window."""
    if tokens:
        if tokens != "default" and not (tokens.isascii() and tokens.isdecimal()):
            raise InvalidRequest(f"/budget does not know '{tokens}'.", hint="a number of tokens, or default")
        current = await talk.stored()
        chosen = None if tokens == "default" else int(tokens[:12])  # as refused as all of its digits
        talk.conversation = await talk.service.contexts.set_budget(current.id, chosen)
    now = talk.conversation.budget if talk.conversation else None
    said = f"At most {now:,} tokens" if now else "What the window and this machine allow"
    talk.console.print(f"{said}. /context says what the last prompt had.", style="dim", highlight=False)


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


async def memory(talk: Talk, asked: str) -> None:
    """Show, change or undo what is remembered of the older turns; list its versions, or take one back."""
    current = await talk.stored()
    contexts = talk.service.contexts
    what, _, number = asked.partition(" ")
    if what == "versions":
        await _print_versions(talk, current)
        return
    if what == "restore":
        if not number.strip().isdecimal():
            raise InvalidRequest("Which version?", hint="/memory versions, then /memory restore NUMBER")
        await contexts.restore_memory(current.id, int(number.strip()[:9]))
    elif what not in ("", "edit", "undo"):
        hint = "/memory, /memory edit, undo, versions, or restore NUMBER"
        raise InvalidRequest(f"/memory does not know '{what}'.", hint=hint)
    held = await contexts.memory(current.id)
    if held is None:
        talk.console.print(
            "Nothing is remembered: older turns stand in the prompt itself, as far as they fit.", style="dim"
        )
        return
    if what == "undo":
        held = await contexts.revert_memory(current.id, version=held.version)
    elif what == "edit":
        changed = await talk.changed(held.text, label="memory> ")
        if changed is not None:
            held = await contexts.edit_memory(current.id, changed, version=held.version)
    talk.console.print(literal(held.text) if held else "Nothing is remembered any more.", highlight=False)
    if held:
        facts = f"version {held.version}, {held.kind}, by {held.edited_by}, of {len(held.covers)} messages"
        talk.console.print(facts, style="dim")


async def _print_versions(talk: Talk, current: Conversation) -> None:
    view = await inspected(talk.service, current.id)
    versions = view.keeping.memories if view else ()
    if not versions:
        talk.console.print("There are none yet.", style="dim")
        return
    table = Table.grid(padding=(0, 2))
    for each in reversed(versions):
        first = " ".join(each.text.split())[:_FIRST] or each.title
        table.add_row(f"{'*' if each.in_force else ' '}{each.version}", _made(each), literal(first))
    talk.console.print(table)
    talk.console.print("[dim]* is in force. /memory restore NUMBER takes back that one was undone.[/]")


def _made(version: MemoryVersion) -> str:
    messages = f"{version.covers} message{'s' if version.covers != 1 else ''}"
    return f"{version.by}, of {messages}{'' if version.active else ', undone'}"


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
