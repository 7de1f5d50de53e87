"""Running answers. An answer belongs to the server, not to the connection: viewers attach, leave and come back.

Knows how an answer is watched, stopped and stored while it grows; leaves how it is made to its caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from rallychat.errors import Busy, NotFound, RallyChatError
from rallychat.messages import Event, Failed, Finished, Part, Queued, ReasoningDelta, TextDelta

log = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Produce = Callable[[Emit], Coroutine[Any, Any, Finished]]
"""Makes the answer, telling each event but the last, which it returns."""
End = Finished | Failed
Conclude = Callable[[End], Awaitable[End]]
"""Stores how the answer ended, whatever happened; what it returns is told to the viewers."""

SAVE_EVERY = 0.5
"""Seconds between two writes of what is growing; the store's journal holds what comes in between."""


class Run:
    """One answer while it is made, and a while after.

    Args:
        produce: makes the answer; cancelled by `stop`.
        conclude: stores the end; called exactly once.
        conversation_id, message_id, user_message_id: where it is stored; empty for answers that are not.
        before: what the answer said before this run goes on with it.
    """

    def __init__(
        self,
        produce: Produce,
        conclude: Conclude,
        *,
        conversation_id: str = "",
        message_id: str = "",
        user_message_id: str | None = None,
        before: tuple[Part, ...] = (),
    ) -> None:
        self.id = f"run_{uuid.uuid4().hex}"
        self.conversation_id = conversation_id
        self.message_id = message_id
        self.user_message_id = user_message_id
        self.before = before
        self.end: End | None = None
        self._events: list[Event] = []
        self._viewers: set[asyncio.Event] = set()
        self._stopped_as: Literal["cancelled", "interrupted"] = "interrupted"
        # Only the making is ever cancelled: what stores the end always runs to its own end.
        self._making = asyncio.create_task(produce(self._emit))
        self._task = asyncio.create_task(self._finish(conclude), name=self.id)

    @property
    def done(self) -> bool:
        """The answer has ended and is stored."""
        return self.end is not None

    @property
    def text(self) -> str:
        """What was said so far in this run."""
        return "".join(event.text for event in self._events if isinstance(event, TextDelta))

    @property
    def reasoning(self) -> str:
        """What was thought so far in this run."""
        return "".join(event.text for event in self._events if isinstance(event, ReasoningDelta))

    async def attach(self, *, apart: bool = False) -> AsyncGenerator[Event, None]:
        """Everything so far, then what comes, to the end. Leaving does not stop the run.

        Deltas that a viewer was too slow for arrive joined into one, or each by itself if `apart`.
        """
        wake = asyncio.Event()
        self._viewers.add(wake)
        seen = 0
        try:
            while True:
                wake.clear()
                fresh, seen = self._events[seen:], len(self._events)
                for event in fresh if apart else joined(fresh):
                    yield event
                if self.end is not None and seen == len(self._events):
                    return
                if seen == len(self._events):
                    await wake.wait()
        finally:
            self._viewers.discard(wake)

    async def begun(self) -> Event:
        """The first event there is: that of an end, where the answer could not even begin."""
        async with aclosing(self.attach()) as events:
            return await anext(events)

    @property
    def events(self) -> tuple[Event, ...]:
        """Everything so far."""
        return tuple(self._events)

    async def wait(self) -> End:
        """How the answer ended."""
        await asyncio.shield(self._task)
        assert self.end is not None
        return self.end

    async def stop(self, reason: Literal["cancelled", "interrupted"] = "cancelled") -> End:
        """Ends the answer where it is; what had arrived is kept. Returns how it ended."""
        if not self._making.done() and not self._making.cancelling():
            self._stopped_as = reason
            self._making.cancel()
        return await self.wait()

    def on_end(self, call: Callable[[Run], None]) -> None:
        """Calls `call` with the run once it is done."""
        self._task.add_done_callback(lambda _: call(self))

    def _emit(self, event: Event) -> None:
        self._events.append(event)
        for wake in self._viewers:
            wake.set()

    async def _finish(self, conclude: Conclude) -> None:
        end: End
        try:
            end = await self._making
        except asyncio.CancelledError:
            end = Finished(self._stopped_as)
        except RallyChatError as exc:
            end = failure(exc)
        except Exception:
            log.exception("the answer %s failed", self.message_id or self.id)
            end = Failed("internal_error", "Something went wrong inside the server.", "see the server's log")
        try:
            end = await conclude(end)
        except RallyChatError as exc:
            log.error("the answer %s could not be stored: %s", self.message_id or self.id, exc)
            end = failure(exc)
        except Exception:
            log.exception("the answer %s could not be stored", self.message_id or self.id)
            end = Failed("store_error", "The answer could not be stored.", "see the server's log")
        self.end = end
        self._emit(end)


def failure(error: RallyChatError) -> Failed:
    """An error as the last event of a turn."""
    retry_after = error.retry_after if isinstance(error, Busy) else None
    return Failed(error.code, error.message, error.hint, retry_after)


def joined(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring deltas joined and outdated queue positions left out."""
    out: list[Event] = []
    for kind, group in itertools.groupby(events, type):
        batch = list(group)
        last = batch[-1]
        if isinstance(last, TextDelta | ReasoningDelta):
            out.append(
                replace(
                    last, text="".join(e.text for e in batch if isinstance(e, TextDelta | ReasoningDelta))
                )
            )
        elif kind is Queued:
            out.append(last)
        else:
            out.extend(batch)
    return out


class Runs:
    """The runs of this process: those that grow, and the last few that ended.

    Args:
        save: stores what grows, all at once; called every `SAVE_EVERY` seconds while anything does.
        keep: how many ended runs can still be attached to.
    """

    def __init__(self, save: Callable[[list[Run]], Awaitable[None]], *, keep: int = 256) -> None:
        self._save = save
        self._keep = keep
        self._runs: dict[str, Run] = {}
        self._growing: dict[str, Run] = {}
        self._saver: asyncio.Task[None] | None = None

    def start(self, run: Run) -> Run:
        """Keeps the run until it ended, and a while after."""
        self._runs[run.id] = run
        self._growing[run.id] = run
        run.on_end(self._ended)
        if run.message_id and (self._saver is None or self._saver.done()):
            self._saver = asyncio.create_task(self._save_while_growing(), name="save growing answers")
        return run

    def get(self, run_id: str) -> Run:
        """The run.

        Raises:
            NotFound: there is none, or it ended long ago.
        """
        try:
            return self._runs[run_id]
        except KeyError:
            raise NotFound("run", run_id) from None

    def of_conversation(self, conversation_id: str) -> Run | None:
        """The answer that is growing in a conversation."""
        mine = (run for run in self._growing.values() if run.conversation_id == conversation_id)
        return next(mine, None)

    def of_message(self, message_id: str) -> Run | None:
        """The run that is making a message."""
        return next((run for run in self._growing.values() if run.message_id == message_id), None)

    async def aclose(self) -> None:
        """Interrupts what is running and waits until it is stored."""
        await asyncio.gather(*(run.stop("interrupted") for run in list(self._growing.values())))
        if self._saver is not None:
            await asyncio.gather(self._saver, return_exceptions=True)

    def _ended(self, run: Run) -> None:
        self._growing.pop(run.id, None)
        if not run.message_id:
            self._runs.pop(run.id, None)
        ended = [run_id for run_id in self._runs if run_id not in self._growing]
        for run_id in ended[: max(0, len(ended) - self._keep)]:
            del self._runs[run_id]

    async def _save_while_growing(self) -> None:
        while growing := [run for run in self._growing.values() if run.message_id]:
            try:
                await self._save(growing)
            except RallyChatError as exc:  # the answer goes on; its end will say what was stored
                log.error("growing answers could not be stored: %s", exc)
            await asyncio.sleep(SAVE_EVERY)
