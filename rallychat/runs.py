"""Running answers. An answer belongs to the server, not to the connection: viewers attach, leave and come back.

Knows how an answer is watched, stopped and stored while it grows; leaves how it is made to its caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from rallychat import logs
from rallychat.errors import Busy, Conflict, NotFound, RallyChatError, Stopping, StoreError
from rallychat.identity import LOCAL_USER, acting_as, current
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


TRY_AGAIN = 1.0
"""Seconds between two attempts to store an end that the database could not take."""


class Run:
    """One answer while it is made, and a while after. It belongs to the person whose request made it.

    Args:
        produce: makes the answer; cancelled by `stop`.
        conclude: stores the end; called exactly once.
        conversation_id, message_id, user_message_id: where it is stored; empty for answers that are not.
        before: what the answer said before this run goes on with it.
    """

    made_here = True
    """False: another process makes it, and this run only follows."""

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
        self.user_id = current().id
        self.has_account = current().via in ("session", "key") and self.user_id != LOCAL_USER
        self.conversation_id = conversation_id
        self.message_id = message_id
        self.user_message_id = user_message_id
        self.before = before
        self.end: End | None = None
        self.unstored: Callable[[], Awaitable[End]] | None = None
        """Stores the end, where the database could not take it."""
        self._events: list[Event] = []
        self._viewers: set[asyncio.Event] = set()
        self._stopped_as: Literal["cancelled", "interrupted"] = "interrupted"
        # Only the making is ever cancelled: what stores the end always runs to its own end.
        named = logs.run_id.set(self.id)
        self._making = asyncio.create_task(produce(self._emit), name=f"make {self.id}")
        self._task = asyncio.create_task(self._finish(conclude), name=self.id)
        logs.run_id.reset(named)

    @property
    def done(self) -> bool:
        """The answer has ended and is stored."""
        return self.end is not None

    @property
    def whole(self) -> bool:
        """Nothing more will be said; it may not be stored yet."""
        return self._making.done()

    @property
    def said(self) -> str:
        """What the whole answer says so far, before this run and in it; nothing while it thinks."""
        return "" if self.reasoning else "".join(part.text for part in self.before) + self.text

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

    async def speaking(self) -> None:
        """Returns when there is a first word, or the answer has ended."""
        async with aclosing(self.attach()) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta | Finished | Failed):
                    return

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
        self.cancel(reason)
        return await self.wait()

    def cancel(self, reason: Literal["cancelled", "interrupted"] = "cancelled") -> None:
        """As `stop`, without waiting."""
        if not self._making.done() and not self._making.cancelling():
            self._stopped_as = reason
            self._making.cancel()

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
        except StoreError as exc:  # a full disk, a database that is away: what was said is kept until it goes
            log.error("the answer %s could not be stored yet: %s", self.message_id or self.id, exc)
            self.unstored = partial(conclude, end)
            end = failure(exc)
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
        save: stores what grows, all at once, and names the runs that are to be stopped: somebody asked another
            process for it, or their person is kept out; called every `SAVE_EVERY` seconds while anything grows.
        keep: how many ended runs can still be attached to.
    """

    def __init__(self, save: Callable[[list[Run]], Awaitable[Collection[str]]], *, keep: int = 256) -> None:
        self._save = save
        self._keep = keep
        self._runs: dict[str, Run] = {}
        self._growing: dict[str, Run] = {}
        self._saver: asyncio.Task[None] | None = None
        self._unstored: dict[str, Run] = {}
        self._storing: asyncio.Task[None] | None = None
        self.stopping = False
        """Nothing new is begun any more."""
        self._hurry = asyncio.Event()

    def admit(self) -> None:
        """Call before anything of a new answer is stored.

        Raises:
            Stopping: the server is being stopped.
        """
        if self.stopping:
            raise Stopping

    def count_of(self, user_id: str) -> int:
        """Answers that are being made here for a user."""
        return sum(run.made_here and run.user_id == user_id for run in self._growing.values())

    def start(self, run: Run) -> Run:
        """Keeps the run until it ended, and a while after."""
        self._runs[run.id] = run
        self._growing[run.id] = run
        run.on_end(self._ended)
        if self._saver is None or self._saver.done():
            self._saver = asyncio.create_task(self._save_while_growing(), name="save growing answers")
        return run

    def get(self, run_id: str) -> Run:
        """The run.

        Raises:
            NotFound: there is none, it is somebody else's, or it ended long ago.
        """
        run = self._runs.get(run_id)
        if run is None or run.user_id != current().id:
            raise NotFound("run", run_id)
        return run

    def of_conversation(self, conversation_id: str) -> Run | None:
        """The answer that is growing in a conversation."""
        return next((run for run in self._mine() if run.conversation_id == conversation_id), None)

    def of_message(self, message_id: str) -> Run | None:
        """The run that is making a message."""
        return next((run for run in self._mine() if run.message_id == message_id), None)

    def _mine(self) -> Iterable[Run]:
        person = current().id
        return (run for run in self._growing.values() if run.user_id == person)

    @property
    def growing(self) -> int:
        """How many answers are being made."""
        return sum(run.made_here for run in self._growing.values())

    async def drain(self, grace: float) -> None:
        """Begins nothing new, lets what runs go on for `grace` seconds, and interrupts what is left."""
        self.stopping = True
        ends = [asyncio.ensure_future(run.wait()) for run in self._growing.values() if run.made_here]
        if ends and grace > 0 and not self._hurry.is_set():
            hurry = asyncio.ensure_future(self._hurry.wait())
            first: set[asyncio.Future[Any]] = {hurry, asyncio.gather(*ends)}
            await asyncio.wait(first, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        await self.aclose()

    def hurry(self) -> None:
        """Ends the grace that `drain` gives."""
        self._hurry.set()

    async def stop_all_of(self, user_id: str) -> None:
        """Ends what grows for a user."""
        theirs = [run for run in self._growing.values() if run.user_id == user_id]
        with acting_as(user_id):  # who asks may be an admin, to whom others' answers are not there
            await asyncio.gather(*(run.stop() for run in theirs))

    async def aclose(self) -> None:
        """Interrupts what is running and waits until it is stored."""
        await asyncio.gather(*(run.stop("interrupted") for run in list(self._growing.values())))
        if self._saver is not None:
            self._saver.cancel()  # everything has ended, and is stored as it ended
            await asyncio.gather(self._saver, return_exceptions=True)
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)
            await self._store_ends()

    def _ended(self, run: Run) -> None:
        self._growing.pop(run.id, None)
        if run.unstored is not None:
            self._unstored[run.id] = run
            if self._storing is None or self._storing.done():
                self._storing = asyncio.create_task(self._store_later(), name="store ends")
        if not run.message_id:
            self._runs.pop(run.id, None)
        ended = [run_id for run_id in self._runs if run_id not in self._growing]
        for run_id in ended[: max(0, len(ended) - self._keep)]:
            del self._runs[run_id]

    async def _store_later(self) -> None:
        while self._unstored:
            await asyncio.sleep(TRY_AGAIN)
            await self._store_ends()

    async def _store_ends(self) -> None:
        """One more attempt at what could not be stored."""
        for run in list(self._unstored.values()):
            assert run.unstored is not None
            try:
                with acting_as(run.user_id):
                    await run.unstored()
            except StoreError:
                continue
            except Conflict:
                log.info("the answer %s was stored, only the news of that was lost", run.message_id)
            except RallyChatError as exc:  # it is gone, with its conversation or its user
                log.error("the answer %s could not be stored: %s", run.message_id, exc)
            except Exception:
                log.exception("the answer %s could not be stored", run.message_id)
            del self._unstored[run.id]

    async def _save_while_growing(self) -> None:
        await asyncio.sleep(SAVE_EVERY)  # nothing has grown yet
        while growing := [run for run in self._growing.values() if run.made_here]:
            try:
                unwanted = await self._save(growing)
                for run in growing:
                    if run.id in unwanted:
                        run.cancel()
            except RallyChatError as exc:  # the answer goes on; its end will say what was stored
                log.error("growing answers could not be stored: %s", exc)
            except Exception:  # nor does a mistake of ours keep anybody from stopping theirs
                log.exception("growing answers could not be stored")
            await asyncio.sleep(SAVE_EVERY)
