"""`rallychat chat`: a conversation in the terminal, over the service in this process.

Knows how an answer is shown and stopped; what /commands do is in slash.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rallychat.chat import ChatService
from rallychat.cli.options import complain, literal, printable
from rallychat.cli.stream import MarkdownStream
from rallychat.cli.whose import acting_for, still_let_in
from rallychat.errors import NotFound, RallyChatError
from rallychat.identity import LOCAL_USER, current
from rallychat.messages import (
    Event,
    Failed,
    Finished,
    Loading,
    Message,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
)
from rallychat.runs import Run
from rallychat.settings import Settings
from rallychat.signals import interruptible, on_signals
from rallychat.store import Conversation
from rallychat.texts import place_in_line

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

ENDINGS = {
    "length": "The answer reached its length limit; /continue goes on.",
    "cancelled": "Stopped; /continue goes on, /regenerate starts over.",
    "interrupted": "Interrupted; /continue goes on, /regenerate starts over.",
}


async def chat(
    settings: Settings, *, system: str | None = None, resume: str | None = None, user: str | None = None
) -> int:
    """Chat until Ctrl-D; with standard input that is no terminal, answer it once. Returns the exit code.

    Args:
        user: the name of the account whose conversations these are; None: those of whoever needs no login.
    """
    logging.getLogger("rallychat").addHandler(logging.NullHandler())  # failures are told where they happen
    async with ChatService.open(settings) as service, acting_for(service.store, user, "user.chat"):
        if not sys.stdin.isatty():
            with interruptible():
                prompt = sys.stdin.read()
            return await answer_once(service, prompt, system=system)
        if user is None and await service.store.people.any():
            Console().print(
                "These are the conversations without login; --user NAME opens an account's.", style="dim"
            )
        conversation = await find(service, resume) if resume else None
        talk = Talk(service, Console(), conversation, system=system or "")
        with keys_kept():
            await talk.run()
    return 0


async def answer_once(service: ChatService, prompt: str, *, system: str | None = None) -> int:
    """Print the plain answer to `prompt` as it comes; nothing is stored."""
    messages = [Message.of("system", system)] if system else []
    messages.append(Message.of("user", prompt.strip()))
    if not prompt.strip():
        complain("There is nothing to answer: standard input is empty.", "echo 'Hello' | rallychat chat")
        return 2
    async with aclosing(service.complete(messages)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                sys.stdout.write(printable(event.text) if sys.stdout.isatty() else event.text)
                sys.stdout.flush()
            elif isinstance(event, Failed):
                complain(event.message, event.hint)
                return 1
    sys.stdout.write("\n")
    return 0


async def find(service: ChatService, name: str) -> Conversation:
    """The conversation of this id, or the newest for "last".

    Raises:
        NotFound: there is none.
    """
    if name != "last":
        return await service.store.get(name)
    newest = await service.store.list(limit=1)
    if not newest:
        raise NotFound("conversation", "last", hint="there are none yet; leave --open out")
    return newest[0]


class Talk:
    """A person at a terminal and their current conversation, which is stored with its first message."""

    def __init__(
        self,
        service: ChatService,
        console: Console,
        conversation: Conversation | None = None,
        *,
        system: str = "",
        session: PromptSession[str] | None = None,
    ) -> None:
        self.service = service
        self.console = console
        self.conversation = conversation
        self.system = system
        self.model: str | None = None
        self.listed: list[Conversation] = []
        self.discarded: str | None = None
        self._session = session

    async def run(self) -> None:
        """Read, answer, repeat, until the person leaves."""
        from rallychat.cli import slash

        model = self.service.resolve(self.conversation.model if self.conversation else None)
        self.console.print(
            f"[bold]RallyChat[/] with {literal(model.name)}. [dim]/help lists the commands, "
            "Ctrl-C stops an answer, Ctrl-D leaves.[/]"
        )
        if self.conversation is None:
            self.service.prepare(None)
        else:
            await slash.show_path(self)
        while (said := await self.ask()) is not None:
            try:
                await still_let_in(self.service.store)
                if said.startswith("/") and not said.startswith("//"):
                    if not await slash.obey(self, said):
                        return
                elif said.strip():
                    await self.say(said.removeprefix("/") if said.startswith("//") else said)
            except RallyChatError as exc:
                complain(exc.message, exc.hint)

    async def ask(self) -> str | None:
        """What the person types next; None when they leave."""
        while True:
            try:
                return await self._prompt().prompt_async("> ", default="")
            except KeyboardInterrupt:
                self.console.print("[dim]Ctrl-D leaves.[/]")
            except EOFError:
                return None

    async def changed(self, text: str, *, label: str) -> str | None:
        """What the person makes of a text; None where they leave it as it is, with Ctrl-C or Ctrl-D."""
        try:
            return await self._prompt().prompt_async(label, default=text)
        except (KeyboardInterrupt, EOFError):
            return None

    def _prompt(self) -> PromptSession[str]:
        if self._session is None:
            self._session = prompt_session(self.service.settings)
        return self._session

    async def say(self, text: str) -> None:
        """Send a message and show its answer."""
        current = await self.stored()
        await self.show(self.service.turn(current.id, text, model=self.model))

    async def stored(self) -> Conversation:
        """The current conversation, created now if this is its first message."""
        if self.conversation is None:
            self.conversation = await self.service.store.create(system=self.system, model=self.model)
        return self.conversation

    async def show(self, starting: Coroutine[Any, Any, Run]) -> None:
        """Show an answer as it grows; Ctrl-C stops the answer, not the program."""
        run = await starting
        stopping: list[asyncio.Task[Any]] = []

        def stop() -> None:
            if not stopping:
                stopping.append(asyncio.create_task(self.service.stop(run.id)))

        with on_signals(stop, signal.SIGINT), MarkdownStream(self.console) as stream:
            async with aclosing(run.attach()) as events:
                end = await show_events(events, stream)
        await asyncio.gather(*stopping)
        self._say_ending(end)
        self.conversation = await self.service.store.get(run.conversation_id)

    def _say_ending(self, end: Finished | Failed | None) -> None:
        if isinstance(end, Failed):
            complain(end.message, end.hint)
        elif end is not None and end.reason in ENDINGS:
            self.console.print(ENDINGS[end.reason], style="dim")
        self.console.print()


async def show_events(events: AsyncIterator[Event], stream: MarkdownStream) -> Finished | Failed | None:
    """Draw each event; return the last one."""
    async for event in events:
        match event:
            case TextDelta(text):
                stream.add(text)
            case ReasoningDelta(text):
                stream.think(text)
            case Queued(position, seconds):
                stream.status(f"Waiting: {place_in_line(position, seconds)} ...")
            case Loading(model, stage, fraction):
                verb = "Downloading" if stage == "download" else "Loading"
                stream.status(f"{verb} {model} ..." + (f" {fraction:.0%}" if fraction is not None else ""))
            case Started():
                stream.status("Reading the prompt ...")
            case Finished() | Failed():
                return event
    return None


@contextmanager
def keys_kept() -> Iterator[None]:
    """Between two prompts, keep what is typed for the next one as it was typed, and off the screen.

    A terminal's own echo would break the drawing, and its line editing turns Enter into a newline.
    """
    try:
        import termios
    except ImportError:  # Windows consoles do neither
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def prompt_session(settings: Settings) -> PromptSession[str]:
    """The input line; commands complete with Tab. Its history is kept in the data folder, but for accounts'."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from rallychat.cli.slash import COMMANDS

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    mine = current().id == LOCAL_USER  # what was said for an account is stored as its own alone
    return PromptSession(
        history=FileHistory(str(settings.data_dir / "chat_history")) if mine else InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        multiline=True,
        key_bindings=key_bindings(),
        prompt_continuation=". ",
    )


def key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter or Ctrl-J begins a new line. What is pasted keeps its lines."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
