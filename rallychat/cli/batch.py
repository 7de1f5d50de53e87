"""`rallychat batch`: answers the lines of a file, with a bar; what an interrupted run did is not done again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rallychat import batches
from rallychat.api.batch_lines import BatchLines
from rallychat.catalog.sizing import batch_slots
from rallychat.chat import ChatService, begin_with
from rallychat.cli.progress import fetch_with_bar
from rallychat.cli.whose import acting_for
from rallychat.errors import InvalidRequest
from rallychat.settings import Settings

SOME_FAILED = 3
"""Exit code of a batch that is complete, but has lines that are errors."""


async def batch(
    settings: Settings,
    source: str,
    output: str,
    *,
    model: str | None = None,
    overwrite: bool = False,
    user: str | None = None,
) -> int:
    """Answer every line of `source` into `output`; "-" is standard input or output. Returns the exit code.

    Args:
        model: answers every line; None: the one it names, or the default.
        user: the name of the account that asks; None: whoever needs no login.

    Raises:
        RallyChatError: the batch cannot be begun, or not go on. What is done stays done.
    """
    logging.getLogger("rallychat").addHandler(logging.NullHandler())  # failures are told where they happen
    console = Console(stderr=True)
    with opened(source) as stream:
        with reading(source):
            lines = batches.survey(Path(source)) if source != "-" else None
        settings = await sized(settings)
        async with ChatService.open(settings) as service, acting_for(service.store, user, "user.batch"):
            for note in service.notes:
                console.print(note, style="yellow", markup=False)
            named = service.settings.model if model else None
            asked = BatchLines(service, model=named, longest=settings.max_body_bytes)
            facts = facts_of(service, lines, model, user)
            with recorded(output, facts, overwrite=overwrite) as record:
                with ending(record, console):
                    asking = lines_of(stream, source, longest=settings.max_body_bytes)
                    done = await answer_all(service, asked, asking, record, lines, console)
                if isinstance(record, batches.Journal):
                    record.finish()
    return SOME_FAILED if done.failed else 0


async def sized(settings: Settings) -> Settings:
    """The settings with as many slots as a batch is fastest with, unless they say how many."""
    if "slots" in settings.model_fields_set:
        return settings
    begin = await asyncio.to_thread(begin_with, settings)
    model = begin.catalog.resolve(begin.settings.model)
    return settings.model_copy(update={"slots": batch_slots(model, settings)})


async def answer_all(
    service: ChatService,
    asked: BatchLines,
    asking: AsyncIterator[batches.Line],
    record: batches.Journal | batches.Stream,
    lines: batches.Survey | None,
    console: Console,
) -> batches.Progress:
    """Make the model ready, and answer what is not yet answered."""
    settings, model = service.settings, service.resolve(None)
    await fetch_with_bar(service.downloads, model, settings, console)
    await service.load(settings.model)
    engine = service.pool.find(model.id)
    slots = (engine.info.slots if engine else None) or settings.slots
    with bar(console) as progress:
        task = progress.add_task(model.name, total=lines.lines if lines else None, tokens=0)

        def tell(at: batches.Progress) -> None:
            progress.update(task, completed=at.done, tokens=at.tokens)

        done = await batches.work(
            asking,
            asked.answer,
            record,
            width=2 * slots,  # the next prompts are read and tokenised while the slots are busy
            ahead=batches.AHEAD * slots,
            tell=tell,
        )
        seconds = progress.tasks[task].elapsed or 0.0
    say_done(done, seconds, console)
    return done


def say_done(done: batches.Progress, seconds: float, console: Console) -> None:
    """What was done, in a line."""
    now = done.done - done.before
    errors = f", {done.failed:,} of them errors" if done.failed else ""
    speed = f" in {seconds:,.1f} s, {done.tokens / seconds:,.1f} tokens a second" if now and seconds else ""
    before = f" ({done.before:,} by an earlier run)" if done.before else ""
    console.print(f"{done.done:,} lines answered{before}{errors}{speed}.", markup=False, highlight=False)


# --- files --------------------------------------------------------------------------------------------------


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Raises InvalidRequest where the input cannot be read."""
    try:
        yield
    except OSError as exc:
        raise InvalidRequest(f"{source} cannot be read: {exc.strerror or exc}.", param="IN.jsonl") from exc


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The input.

    Raises:
        InvalidRequest: it cannot be read.
    """
    if source == "-":
        yield sys.stdin.buffer
        return
    with reading(source):
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below
    with stream:
        yield stream


async def lines_of(stream: BinaryIO, source: str, *, longest: int) -> AsyncIterator[batches.Line]:
    """The input's lines; see `batches.read_lines`."""
    with reading(source):
        async for line in batches.read_lines(stream, longest=longest):
            yield line


def facts_of(
    service: ChatService, lines: batches.Survey | None, model: str | None, user: str | None
) -> dict[str, object] | None:
    """What the outcomes depend on; None where that cannot be known, so that nothing is resumed."""
    if lines is None:
        return None
    usual = service.resolve(None)
    return {
        "input": lines.sha256,
        "model": usual.id,
        "--model": bool(model),
        "generation config": service.sampling(usual).as_dict(),
        "--user": user,
    }


@contextmanager
def recorded(
    output: str, facts: dict[str, object] | None, *, overwrite: bool
) -> Iterator[batches.Journal | batches.Stream]:
    """Where outcomes go: a journalled file if the batch can be resumed, else a stream.

    Raises:
        Conflict: the output is there already, and not of this batch.
        InvalidRequest: it cannot be written.
    """
    try:
        if output == "-":
            yield batches.Stream(sys.stdout.buffer)
        elif facts is not None:
            with batches.Journal(Path(output), facts, overwrite=overwrite) as journal:
                yield journal
        else:
            with closing(batches.Stream.to(Path(output), overwrite=overwrite)) as stream:
                yield stream
    except batches.WriteError as exc:
        if output == "-":
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        if exc.errno == errno.EPIPE:
            raise InvalidRequest("Nobody reads the outcomes any more.", param="output") from exc
        raise InvalidRequest(
            f"{'Standard output' if output == '-' else output} cannot be written: {exc.strerror}.",
            param="output",
            hint="make room or choose another place; what is done is kept",
        ) from exc


@contextmanager
def ending(record: batches.Journal | batches.Stream, console: Console) -> Iterator[None]:
    """Says what is left of a batch that does not come to its end."""
    try:
        yield
    except BaseException:
        if isinstance(record, batches.Journal):
            kept = record.written + len(record.held)
            console.print(
                f"{kept:,} lines are done; the same command goes on from there.", style="dim", highlight=False
            )
        raise


# --- the bar ------------------------------------------------------------------------------------------------


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        tokens, seconds = task.fields["tokens"], task.elapsed
        return Text(f"{tokens / seconds:,.1f} tokens/s" if tokens and seconds else "", style="green")


def bar(console: Console) -> Progress:
    """Lines done, tokens a second, time left; prints nothing where there is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
