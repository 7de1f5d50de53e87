"""One model's engine, kept alive: starts its worker, restarts it when it dies, hands out its slots."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Literal

from rallychat.engines.client import EngineClient
from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import (
    CompletionRequest,
    Done,
    EngineEvent,
    EngineInfo,
    Prefill,
    Tokens,
    WorkerSpec,
)
from rallychat.engines.slots import reusable
from rallychat.errors import EngineInterrupted, EngineUnavailable, RallyChatError
from rallychat.pool.slots import Apart, Notify, Preempted, Priority, Slot, SlotQueue
from rallychat.settings import Settings

log = logging.getLogger(__name__)

BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each restart in a row; the last one repeats."""
GIVE_UP = 5
"""Failed starts in a row after which those who wait are told."""
HEALTHY = 60.0
"""Seconds of life after which earlier deaths are forgotten."""

SIP = 32
"""Tokens that background work evaluates at a time."""

SEEN = 2.0
"""Seconds within which the end of a process is noticed."""

State = Literal["loading", "loaded", "unavailable", "stopped"]


class Engine:
    """A supervised worker and its slots.

    Args:
        spec: what the worker runs.
        settings: timeouts and the length of the queue.
        came_back: called after each restart, when it can answer again and its caches are empty.
    """

    def __init__(
        self, spec: WorkerSpec, settings: Settings, *, came_back: Callable[[Engine], None] = lambda _: None
    ) -> None:
        self.spec = spec
        self.state: State = "loading"
        self.error: RallyChatError | None = None
        self.restarts = 0
        self.used_at = time.monotonic()
        self.users = 0
        self.background_tokens = 0
        """Prompt tokens evaluated so far for what nobody waited for."""
        self.queue = SlotQueue(spec.slots, limit=settings.max_queue)
        self._settings = settings
        self._came_back = came_back
        self._process: WorkerProcess | None = None
        self._changed = asyncio.Condition()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {spec.model}")

    @property
    def idle(self) -> bool:
        """Nobody uses or waits for this engine; background work does not keep it."""
        return not self.queue.people and not self.users

    @property
    def pid(self) -> int | None:
        """Process id of the worker, or None while there is none."""
        return self._process.pid if self._process and self.state == "loaded" else None

    @property
    def client(self) -> EngineClient:
        """Speaks to the running worker."""
        if self._process is None or self.state != "loaded":
            raise EngineInterrupted(f"The engine of '{self.spec.model}' is restarting.", hint="ask again")
        return self._process.client

    @property
    def info(self) -> EngineInfo:
        """What the running worker says of itself."""
        if self._process is None:
            raise EngineUnavailable(f"The engine of '{self.spec.model}' is not running.")
        return self._process.info

    async def ready(self) -> None:
        """Waits until the worker answers.

        Raises:
            EngineUnavailable: it could not be started.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.state != "loading")
        if self.error is not None and self.state != "loaded":
            raise self.error

    @asynccontextmanager
    async def using(self) -> AsyncIterator[None]:
        """Keeps the engine from being unloaded."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.used_at = time.monotonic()

    @asynccontextmanager
    async def slot(
        self,
        ids: list[int],
        *,
        notify: Notify = lambda _: None,
        priority: Priority = Priority.CHAT,
        session: str = "",
        apart: Apart = "no",
    ) -> AsyncIterator[Slot]:
        """A slot for a prompt of `ids`; see `SlotQueue.slot`."""
        asked = self.queue.slot(ids, notify=notify, priority=priority, session=session, apart=apart)
        async with asked as slot:
            yield slot

    async def generate(
        self, request: CompletionRequest, slot: Slot, *, session: str | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """The engine's events for `request` on `slot`; closing it cancels.

        Raises:
            Preempted: this is background work, and somebody who goes first wants the engine.
        """
        held = request.prompt[: reusable(slot.ids, request.prompt, rollback=self.info.rollback)]
        begun = len(held)
        slot.ids = request.prompt
        where = slot.index if self.info.slot_affinity else None
        try:
            stream = self.client.generate(request.model_copy(update={"slot": where}), session=session)
            person = slot.holder is Priority.CHAT
            async with aclosing(stream if person else _until(slot.wanted, stream)) as events:
                async for event in events:
                    match event:
                        case Prefill():
                            held = request.prompt[: event.processed]
                        case Tokens():
                            held = held if len(held) >= len(request.prompt) else list(request.prompt)
                            held.extend(event.ids)
                        case Done():
                            held = held if len(held) >= len(request.prompt) else list(request.prompt)
                    yield event
        finally:
            if slot.holder is not Priority.CHAT:
                self.background_tokens += max(0, min(len(held), len(request.prompt)) - begun)
            slot.ids = held

    async def warm(self, ids: list[int], slot: Slot, *, adapter: str = "") -> int:
        """Evaluates a prompt into a slot and generates nothing; returns how many tokens had to be evaluated.

        Small steps: who wants the engine meanwhile waits for one of them at most.

        Raises:
            Preempted: somebody who goes first wants the engine; what was evaluated until then stays.
        """
        evaluated, at = 0, reusable(slot.ids, ids, rollback=self.info.rollback)
        while at < len(ids):
            at = min(at + SIP, len(ids))
            request = CompletionRequest(
                model=adapter or self.spec.model, prompt=ids[:at], max_tokens=0, temperature=0
            )
            async with aclosing(self.generate(request, slot)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        evaluated += event.prompt_tokens - event.cached_tokens
        return evaluated

    async def recover(self, *, hung: bool) -> None:
        """After an interrupted answer: waits for the worker that follows; one that hangs is killed first.

        Raises:
            EngineUnavailable: there will be none.
        """
        process = self._process
        if hung and process is not None:
            log.error("engine %s is silent for too long and is killed", self.spec.model)
            await process.stop()
        # A stream breaks a moment before its process is seen to have ended.
        with suppress(TimeoutError):
            async with asyncio.timeout(SEEN), self._changed:
                await self._changed.wait_for(lambda: self._process is not process or self.state != "loaded")
        await self.ready()

    async def stop(self) -> None:
        """Ends the worker; those who wait are told."""
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._process is not None:
            await self._process.stop()
        await self._become(
            "stopped", EngineUnavailable(f"'{self.spec.model}' was unloaded.", hint="ask again")
        )

    async def _supervise(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(BACK_OFF[min(failures, len(BACK_OFF) - 1)])
            started = time.monotonic()
            process = WorkerProcess(
                self.spec,
                load_timeout=self._settings.load_timeout,
                stall_timeout=self._settings.stall_timeout,
            )
            try:
                await process.start()
            except RallyChatError as exc:
                failures += 1
                await self._failed(exc, failures)
                continue
            self._process = process
            await self._become("loaded")
            if self.restarts:
                self._came_back(self)
            try:
                code = await process.exited()
            finally:
                self.queue.pause()
            await process.stop()  # frees its socket and streams
            failures = 0 if time.monotonic() - started > HEALTHY else failures + 1
            self.restarts += 1
            log.warning("engine %s died with code %s; restart %d", self.spec.model, code, self.restarts)
            await self._become("loading")

    async def _failed(self, error: RallyChatError, failures: int) -> None:
        log.error("engine %s did not start (%d): %s", self.spec.model, failures, error)
        if self.restarts == 0 or failures >= GIVE_UP:  # it never ran, or it does not come back
            await self._become("unavailable", error)
            await asyncio.Event().wait()  # the pool replaces this engine at the next request

    async def _become(self, state: State, error: RallyChatError | None = None) -> None:
        self.state, self.error = state, error
        if state == "loaded":
            self.queue.resume(rollback=self.info.rollback)
        else:
            self.queue.pause()
        if error is not None:
            self.queue.refuse(error)
        async with self._changed:
            self._changed.notify_all()


async def _until(
    wanted: asyncio.Event, stream: AsyncGenerator[EngineEvent]
) -> AsyncGenerator[EngineEvent, None]:
    """The stream, until it is `wanted` that it ends."""
    leave = asyncio.ensure_future(wanted.wait())
    async with aclosing(stream):
        try:
            while True:
                step = asyncio.ensure_future(anext(stream))
                try:
                    await asyncio.wait({step, leave}, return_when=asyncio.FIRST_COMPLETED)
                    if not step.done():
                        raise Preempted
                    event = step.result()
                except StopAsyncIteration:
                    return
                finally:
                    step.cancel()
                    await asyncio.gather(step, return_exceptions=True)
                yield event
                if leave.done() and not isinstance(event, Done):
                    raise Preempted
        finally:
            leave.cancel()
