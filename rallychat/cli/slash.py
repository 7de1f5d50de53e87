"""The /commands of `rallychat chat`: one small function each, listed in `COMMANDS`."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.markdown import Markdown
from rich.table import Table

from rallychat.catalog import Sampling
from rallychat.catalog.types import SamplingFacts
from rallychat.cli import slash_context
from rallychat.cli.export import write_one
from rallychat.cli.options import literal, printable
from rallychat.cli.slash_context import begun
from rallychat.errors import InvalidRequest, NotFound
from rallychat.store import StoredMessage

if TYPE_CHECKING:
    from rallychat.cli.chat import Talk


@dataclass(frozen=True, slots=True)
class Command:
    """A /command: how it is written, what it does, and the function that does it."""

    usage: str
    help: str
    act: Callable[[Talk, str], Awaitable[None]]


async def obey(talk: Talk, line: str) -> bool:
    """Carry out a line that begins with "/"; False when the person wants to leave.

    Raises:
        NotFound: there is no such command; the hint has near ones.
    """
    name, _, rest = line[1:].strip().partition(" ")
    if name in ("exit", "quit"):
        return False
    if name not in COMMANDS:
        near = [f"/{match}" for match in get_close_matches(name, COMMANDS, n=2, cutoff=0.5)]
        raise NotFound("command", f"/{name}", hint=" or ".join(near) or "/help lists them")
    await COMMANDS[name].act(talk, rest.strip())
    return True


async def help_(talk: Talk, _: str) -> None:
    """List the commands."""
    table = Table.grid(padding=(0, 3))
    for command in COMMANDS.values():
        table.add_row(f"[bold]{literal(command.usage)}[/]", literal(command.help))
    talk.console.print(table)
    talk.console.print(
        "[dim]Enter sends, Alt-Enter or Ctrl-J begins a new line, // at the start sends a line beginning with /.[/]"
    )


# --- conversations ------------------------------------------------------------------------------------------


async def new(talk: Talk, _: str) -> None:
    """Leave this conversation and begin another."""
    talk.conversation = None
    talk.console.print("A new conversation.", style="dim")


async def list_(talk: Talk, _: str) -> None:
    """The newest conversations, numbered."""
    talk.listed = await talk.service.store.list(limit=20)
    if not talk.listed:
        talk.console.print("There are no conversations yet.", style="dim")
        return
    table = Table.grid(padding=(0, 2))
    for number, row in enumerate(talk.listed, 1):
        here = "*" if talk.conversation and row.id == talk.conversation.id else " "
        when = row.updated_at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(f"{here}{number}", literal(row.title or "(no title)"), f"[dim]{when}[/]")
    talk.console.print(table)
    talk.console.print("[dim]/open NUMBER goes on with one.[/]")


async def open_(talk: Talk, name: str) -> None:
    """Go on with a conversation, by its number in /list or its id."""
    if name.isdecimal():
        listed = talk.listed or await talk.service.store.list(limit=20)
        if not 1 <= int(name) <= len(listed):
            raise NotFound("conversation", name, hint="/list shows their numbers")
        name = listed[int(name) - 1].id
    if not name:
        raise InvalidRequest("Which one?", hint="/list, then /open NUMBER")
    talk.conversation = await talk.service.store.get(name)
    talk.model = None
    await show_path(talk)


async def show_path(talk: Talk) -> None:
    """Print the current branch."""
    if talk.conversation is None:
        return
    for row in await talk.service.store.path(talk.conversation.id):
        if row.role == "user":
            talk.console.print(f"[bold cyan]>[/] {literal(row.text)}")
        else:
            talk.console.print(Markdown(printable(row.text)))
        talk.console.print()


async def title(talk: Talk, text: str) -> None:
    """Rename the conversation."""
    current = begun(talk)
    talk.conversation = await talk.service.store.update(current.id, title=text)


async def delete(talk: Talk, _: str) -> None:
    """Move the conversation to the trash."""
    current = begun(talk)
    await talk.service.store.library.discard(current.id)
    talk.conversation, talk.discarded = None, current.id
    talk.console.print("Moved to the trash. /restore takes it back.", style="dim")


async def restore(talk: Talk, _: str) -> None:
    """Take back what was deleted last."""
    if talk.discarded is None:
        raise InvalidRequest("Nothing was deleted here.", hint="the page lists what is in the trash")
    talk.conversation = await talk.service.store.library.restore(talk.discarded)
    talk.discarded = None
    await show_path(talk)


# --- how it answers -----------------------------------------------------------------------------------------


async def system(talk: Talk, text: str) -> None:
    """Show or set the system prompt."""
    if not text:
        now = talk.conversation.system if talk.conversation else talk.system
        talk.console.print(literal(now) or "[dim]The model's own default.[/]")
        return
    talk.system = text
    if talk.conversation is not None:
        talk.conversation = await talk.service.store.update(talk.conversation.id, system=text)
    talk.console.print("Set.", style="dim")


async def model(talk: Talk, name: str) -> None:
    """Show the models, or choose one."""
    if name:
        chosen = talk.service.resolve(name)
        talk.model = name
        if talk.conversation is not None:
            talk.conversation = await talk.service.store.update(talk.conversation.id, model=name)
        talk.console.print(f"{literal(chosen.name)} answers from now on.", style="dim")
        return
    current = talk.service.resolve(talk.model or (talk.conversation.model if talk.conversation else None))
    table = Table.grid(padding=(0, 2))
    for card in await talk.service.models():
        here = "*" if card.model.id == current.id else " "
        table.add_row(f"{here} {card.model.id}", literal(card.model.description), f"[dim]{card.state}[/]")
    talk.console.print(table)


async def set_(talk: Talk, text: str) -> None:
    """Show or set how the next token is chosen, for this conversation."""
    words = text.replace("=", " ").split(maxsplit=1)
    now = talk.conversation.sampling if talk.conversation else Sampling()
    if len(words) < 2:
        given = now.as_dict()
        for name in SamplingFacts.model_fields:
            shown = literal(str(given[name])) if name in given else "[dim]not set[/]"
            talk.console.print(f"  {name:20} {shown}")
        return
    sampling = changed(now, words[0], words[1])
    current = await talk.stored()
    talk.conversation = await talk.service.store.update(current.id, sampling=sampling)
    talk.console.print(f"{words[0]} is {literal(words[1])}.", style="dim")


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """`sampling` with one parameter as typed; `default` takes it back.

    Raises:
        InvalidRequest: there is no such parameter, or the value is out of its range.
    """
    if name not in SamplingFacts.model_fields:
        known = ", ".join(SamplingFacts.model_fields)
        raise InvalidRequest(f"There is no parameter '{name}'.", param=name, hint=f"known: {known}")
    kept = {key: value for key, value in sampling.as_dict().items() if key != name}
    if text == "default":
        return SamplingFacts.model_validate(kept).value()
    try:
        value = tuple(shlex.split(text)) if name == "stop" else text
    except ValueError as exc:
        hint = 'put it between double quotes: "don\'t"'
        raise InvalidRequest(f"{name}: a quote or a backslash is left open.", param=name, hint=hint) from exc
    try:
        return SamplingFacts.model_validate({**kept, name: value}).value()
    except ValidationError as exc:
        raise InvalidRequest(f"{name}: {exc.errors()[0]['msg']}.", param=name) from exc


# --- answers ------------------------------------------------------------------------------------------------


async def regenerate(talk: Talk, _: str) -> None:
    """Answer the last message again."""
    rows = await _rows(talk)
    await talk.show(talk.service.regenerate(rows[-1].id, model=talk.model))


async def continue_(talk: Talk, _: str) -> None:
    """Go on where the last answer ended."""
    rows = await _rows(talk)
    await talk.show(talk.service.continue_answer(rows[-1].id))


async def edit(talk: Talk, _: str) -> None:
    """Change your last message; what was there stays as another branch."""
    mine = [row for row in await _rows(talk) if row.role == "user"]
    changed = await talk.changed(mine[-1].text, label="edit> ")
    if changed and changed.strip():
        await talk.show(talk.service.edit(mine[-1].id, changed, model=talk.model))


async def export(talk: Talk, name: str) -> None:
    """Write the conversation to a file: the branch in view as Markdown, or all of it for .json."""
    current, branch = begun(talk), await _rows(talk)
    entire = await talk.service.store.library.entire(current.id)
    path = write_one(name or f"{current.id}.md", entire, branch)
    talk.console.print(f"Written to {literal(str(path))}", style="dim")


async def _rows(talk: Talk) -> list[StoredMessage]:
    rows = await talk.service.store.path(begun(talk).id)
    if not rows:
        raise InvalidRequest("This conversation has no messages yet.")
    return rows


async def _leave(talk: Talk, _: str) -> None:
    """Listed for /help; `obey` leaves by itself."""


COMMANDS = {
    "help": Command("/help", "list the commands", help_),
    "new": Command("/new", "begin a new conversation", new),
    "list": Command("/list", "the newest conversations", list_),
    "open": Command("/open NUMBER|ID", "go on with a conversation", open_),
    "title": Command("/title TEXT", "rename the conversation", title),
    "delete": Command("/delete", "move the conversation to the trash", delete),
    "restore": Command("/restore", "take back what was deleted last", restore),
    "system": Command("/system [TEXT]", "show or set the system prompt", system),
    "model": Command("/model [NAME]", "show the models, or choose one", model),
    "set": Command("/set [NAME VALUE]", "show or set a parameter: /set temperature 0.5", set_),
    "regenerate": Command("/regenerate", "answer the last message again", regenerate),
    "continue": Command("/continue", "go on where the last answer ended", continue_),
    "edit": Command("/edit", "change your last message", edit),
    "context": Command("/context [full]", "what the model saw for the last answer", slash_context.context),
    "strategy": Command("/strategy [NAME]", "how the conversation is kept short", slash_context.strategy),
    "budget": Command(
        "/budget [TOKENS|default]", "how long the conversation's prompts may be", slash_context.budget
    ),
    "elsewhere": Command(
        "/elsewhere [on|off|default]",
        "whether your other conversations are quoted",
        slash_context.elsewhere,
    ),
    "memory": Command(
        "/memory [edit|undo|versions|restore NUMBER]",
        "what is remembered of older turns; change it, undo it, or take back that a version was undone",
        slash_context.memory,
    ),
    "pin": Command("/pin [NUMBER]", "keep a message in the prompt for good", slash_context.pin),
    "exclude": Command("/exclude [NUMBER]", "keep a message out of the prompt", slash_context.exclude),
    "export": Command("/export [FILE]", "write the conversation as Markdown, or JSON for .json", export),
    "exit": Command("/exit", "leave (or Ctrl-D)", _leave),
}
