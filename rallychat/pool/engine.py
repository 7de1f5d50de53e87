"""One model's engine, kept alive: starts its worker, restarts it when it dies, hands out its slots."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Literal, Unpack

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
from rallychat.errors import EngineError, EngineInterrupted, EngineUnavailable, RallyChatError
from rallychat.identity import LOCAL_USER, current
from rallychat.pool.affinity import How, Preempted, Priority, Slot
from rallychat.pool.offload import Offload
from rallychat.pool.slots import SlotQueue
from rallychat.settings import Settings
from rallychat.store.whole import to_the_end

log = logging.getLogger(__name__)

BACK_OFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each restart in a row; the last one repeats."""
GIVE_UP = 5
"""Failed starts in a row after which those who wait are told."""
HEALTHY = 60.0
"""Seconds of life after which earlier deaths are forgotten."""

SIP, SIPS = 32, (8, 1024)
"""Tokens that background work evaluates at a time: at first, and the fewest and most."""
STEP = 0.06
"""Seconds that one such step may take, for that long a person may have to wait for it."""

PATIENCE = 5.0
"""Seconds after which a worker that does not say whether it is well counts as busy, not as dead."""

State = Literal["loading", "loaded", "unavailable", "stopped"]


class Engine:
    """A supervised worker and its slots.

    Args:
        spec: what the worker runs.
        settings: timeouts and the length of the queue.
        loaded: called when it can answer and its caches are empty, at first and after each restart.
    """

    def __init__(
        self, spec: WorkerSpec, settings: Settings, *, loaded: Callable[[Engine], None] = lambda _: None
    ) -> None:
        self.spec = spec
        self.state: State = "loading"
        self.error: RallyChatError | None = None
        self.restarts = 0
        self.began = self.used_at = time.monotonic()
        self.users = 0
        self.background_tokens = 0
        """Prompt tokens evaluated so far for what nobody waited for."""
        self._sip = SIP
        self.queue = SlotQueue(spec.slots, limit=settings.max_queue)
        self.offload = Offload(self.queue.costs)
        self._settings = settings
        self._loaded = loaded
        self._process: WorkerProcess | None = None
        self._discarding: set[asyncio.Task[None]] = set()
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
    async def slot(self, ids: list[int], **how: Unpack[How]) -> AsyncIterator[Slot]:
        """A slot for a prompt of `ids`; see `SlotQueue.slot`."""
        async with self.queue.slot(ids, **how) as slot:
            if self._offloads:
                rollback = self.info.rollback
                await self.offload.exchange(slot, ids, self.client, salt=salt(), rollback=rollback)
            yield slot

    async def generate(
        self, request: CompletionRequest, slot: Slot, *, session: str | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        """The engine's events for `request` on `slot`; closing it cancels.

        Raises:
            Preempted: somebody who goes first wants the engine, or this slot.
        """
        held = request.prompt[: reusable(slot.ids, request.prompt, rollback=self.info.rollback)]
        begun, clock, said = len(held), _Clock(), False
        slot.ids = request.prompt
        where = slot.index if self.info.slot_affinity else None
        try:
            asked = request.model_copy(update={"slot": where, "cache_salt": salt()})
            stream = self.client.generate(asked, session=session)
            person = slot.holder is Priority.CHAT
            async with aclosing(stream if person else _until(slot.wanted, stream)) as events:
                async for event in events:
                    match event:
                        case Prefill():
                            fresh = event.processed - max(event.cached, len(held))
                            held = request.prompt[: event.processed]
                            took = clock.read(event)
                            if fresh > 0:
                                self._read(slot, fresh, took)
                        case Tokens():
                            self._said(slot, max(1, len(event.ids)), clock.said(), first=not said)
                            said = True
                            held = held if len(held) >= len(request.prompt) else list(request.prompt)
                            held.extend(event.ids)
                        case Done():
                            held = held if len(held) >= len(request.prompt) else list(request.prompt)
                    yield event
                    if person and slot.wanted.is_set() and not isinstance(event, Done):
                        raise Preempted
        finally:
            if slot.holder is None or not slot.holder.foreground:
                self.background_tokens += max(0, min(len(held), len(request.prompt)) - begun)
            slot.ids = held

    def _read(self, slot: Slot, tokens: int, seconds: float) -> None:
        self.queue.costs.read(tokens, seconds)
        self.queue.charge(slot, tokens * self.queue.costs.of_prompt)

    def _said(self, slot: Slot, tokens: int, seconds: float, *, first: bool) -> None:
        if first:  # it is part of what reading gives
            self.queue.begun(slot)
        else:
            self.queue.spoke(slot, seconds / tokens)
            self.queue.costs.say(tokens, seconds / max(1, self.queue.writing))
        self.queue.charge(slot, tokens, said=tokens)

    async def warm(self, ids: list[int], slot: Slot, *, adapter: str = "", most: int | None = None) -> int:
        """Evaluates a prompt into a slot and generates nothing; returns how many tokens had to be evaluated.

        Small steps: who wants the engine meanwhile waits for one of them at most. Nothing is read where that would
        spare the prompt nothing.

        Args:
            most: tokens that are evaluated this time, in one step; None: all of them.

        Raises:
            Preempted: somebody who goes first wants the engine; what was evaluated until then stays.
        """
        if not self.info.extends:
            return 0
        evaluated, at = 0, reusable(slot.ids, ids, rollback=self.info.rollback)
        end = len(ids) if most is None else min(len(ids), at + most)
        while at < end:
            begun, began = at, time.monotonic()
            at = min(at + (most or self._sip), end)
            request = CompletionRequest(
                model=adapter or self.spec.model, prompt=ids[:at], max_tokens=0, temperature=0
            )
            async with aclosing(self.generate(request, slot)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        evaluated += event.prompt_tokens - event.cached_tokens
            if most is None and at - begun == self._sip:
                self._sip = sip_after(self._sip, time.monotonic() - began)
        return evaluated

    @property
    def _offloads(self) -> bool:
        return bool(self.spec.offload_mb) and self.info.offload

    async def keep(self, session: str) -> None:
        """Copies a conversation's cache while nobody needs its slot, where conversations drive each other out."""
        slot = self.queue.home(session)
        if slot is not None and not slot.busy and self.state == "loaded" and self._offloads:
            await self.offload.keep(slot, self.client)

    def forget(self, *, session: str = "", user: str = "") -> None:
        """Deletes what is kept of that conversation, or of all of a user's; what slots hold, anybody may have."""
        self.queue.forget(session=session, user=user)
        names = self.offload.forget(session=session, user=user)
        if names:
            task = asyncio.create_task(self._discard(names), name=f"discard caches of {self.spec.model}")
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)

    async def _discard(self, names: list[str]) -> None:
        with suppress(EngineError):  # a worker that is not there any more took them with it
            await self.client.discard(names)

    async def recover(self, *, hung: bool) -> None:
        """After an interrupted answer: waits for the worker that follows; one that hangs is killed first.

        Raises:
            EngineUnavailable: there will be none.
        """
        process = self._process
        if process is not None and self.state == "loaded":
            if hung:
                log.error("engine %s is silent for too long and is killed", self.spec.model)
            if hung or not await _answers(process):
                await process.stop()
                async with self._changed:  # a stream breaks before its process is seen to have ended
                    await self._changed.wait_for(
                        lambda: self._process is not process or self.state != "loaded"
                    )
        await self.ready()

    async def stop(self) -> None:
        """Ends the worker, also where the caller is cancelled meanwhile; those who wait are told."""
        await to_the_end(self._stop())

    async def _stop(self) -> None:
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
            self._process, began = process, time.monotonic()
            await self._become("loaded")
            self._loaded(self)
            try:
                code = await process.exited()
            finally:
                self.queue.pause()
            await process.stop()  # frees its socket and streams
            failures = 0 if time.monotonic() - began > HEALTHY else failures + 1
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
            self._sip = SIP
            self.offload.begin(self.info.cache_bytes)
            self.queue.resume(rollback=self.info.rollback, pausing=self.info.token_ids)
        else:
            self.queue.pause()
        if error is not None:
            self.queue.refuse(error)
        async with self._changed:
            self._changed.notify_all()


class _Clock:
    """What reading and saying take in one request."""

    def __init__(self) -> None:
        self._told_at, self._read_ms = time.monotonic(), 0.0

    def read(self, event: Prefill) -> float:
        """Seconds for the tokens that were read since it was last asked: by the engine's own clock, where it has one.

        llama.cpp tells of a short prompt together with its first token, when all of it is over.
        """
        since = self.said()
        if event.ms is None:
            return since
        took, self._read_ms = event.ms - self._read_ms, event.ms
        return took / 1000

    def said(self) -> float:
        """Seconds since it was last asked."""
        before, self._told_at = self._told_at, time.monotonic()
        return self._told_at - before


async def _answers(process: WorkerProcess) -> bool:
    """The worker lives: what failed was one answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            try:
                await process.client.health()
            except EngineError:
                return False
    return True


def sip_after(size: int, took: float) -> int:
    """How many tokens the next step has, after one of `size` that took so many seconds."""
    least, most = SIPS
    if took > STEP:
        return max(least, size // 2)
    return min(most, size * 2) if took < STEP / 2 else size


def salt() -> str | None:
    """Keeps the prefix caches of people apart; there is nobody to keep the one local person's from."""
    user = current().id
    return None if user == LOCAL_USER else hashlib.blake2b(user.encode(), digest_size=16).hexdigest()


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
