"""One answer: from a planned prompt to events. Knows engine events and reasoning tags; stores nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from rallychat.catalog import Family, Sampling
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, Done, Prefill, Tokens
from rallychat.engines.slots import reusable
from rallychat.errors import EngineInterrupted, EngineUnavailable, Late
from rallychat.messages import Failed, Finished, Part, Piece, Started, Timings, Usage
from rallychat.parsing import AnswerParser
from rallychat.planning import Plan
from rallychat.pool import Engine, Preempted, Priority, Slot
from rallychat.runs import Emit

FALLBACK = Sampling(temperature=0.7, top_p=0.95, top_k=0, min_p=0.05, repetition_penalty=1.0)
"""What holds where neither the asker, nor the user's settings, nor model or family say anything."""


_KNOWN_ENDS: WeakKeyDictionary[EngineClient, dict[tuple[str, ...], list[int]]] = WeakKeyDictionary()
"""What families' end tokens are in an engine's vocabulary."""
NOT_READY = 30.0
"""Seconds after which a model that was not ready in time may be."""
REFUSALS = 5
"""Times an engine may be gone before it heard of an answer; then it is the engine that is at fault."""
PAUSE = 0.1
"""Seconds before the second attempt after those, doubled each time: a worker that lives may just be swamped."""
BEYOND = 16
"""Tokens an engine may have generated beyond an answer's text: one that ends the turn, or a stop string's."""


@dataclass(slots=True)
class Growth:
    """An answer as it grows: what is stored of it at any moment.

    `ids` are the generated tokens, None once they are not known exactly; `raw` the text they stand for, tags
    and all.
    """

    parser: AnswerParser
    began: float = field(default_factory=time.monotonic)
    plan: Plan | None = None
    ids: list[int] | None = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    completion_tokens: int = 0
    cached_tokens: int = 0
    until: float | None = None
    """When who asked stops waiting for its turn, by the monotonic clock; None as soon as that has come."""
    admitted: bool = False
    """It had a slot; where it needs another one, it is not refused."""
    reached: bool = False
    """It was given to the engine; who has not been cannot be what the engine died of."""
    sipped: int = 0
    """Tokens of the prompt that were read ahead of the answer's own request."""
    reasoning_tokens: int = 0
    cuts: list[int] = field(default_factory=list)
    """Lengths of the deltas that were told."""
    planned_ms: float = 0.0
    queued_ms: float = 0.0
    first_token_ms: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """Seconds between one arrival of tokens and the next."""
    told_at: float = 0.0

    @property
    def parts(self) -> tuple[Part, ...]:
        """What has arrived."""
        return self.parser.parts

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = len(self.plan.ids) if self.plan else 0
        return Usage(prompt, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)

    @property
    def timings(self) -> Timings:
        """Times so far."""
        return Timings(self.queued_ms, self.first_token_ms, self.elapsed_ms())

    def closed(self, end: Finished | Failed) -> Finished | Failed:
        """The end of this answer, with what it cost."""
        if isinstance(end, Failed):
            return end
        return Finished(end.reason, self.usage, self.timings, self.plan.report if self.plan else None)

    def steps(self, ended: float) -> dict[str, tuple[float, float]]:
        """When each step began and ended, by the monotonic clock; the whole answer was there at `ended`."""
        now = time.monotonic()
        moments = [("plan", self.planned_ms), ("queue", self.queued_ms), ("prefill", self.first_token_ms)]
        found, since = {"turn": (self.began, now)}, self.began
        for name, ms in moments:
            if not ms:
                break
            found[name] = (since, self.began + ms / 1000)
            since = self.began + ms / 1000
        else:
            found["decode"] = (since, ended)
        return found

    def give_up_after(self, seconds: float | None) -> None:
        """Its turn must come so many seconds after it was asked; None: it waits as long as it takes."""
        self.until = None if seconds is None else self.began + seconds

    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return round((time.monotonic() - self.began) * 1000, 2)


async def generate(
    growth: Growth,
    *,
    engine: Engine,
    plan: Callable[[], Awaitable[Plan]],
    family: Family,
    sampling: Sampling,
    emit: Emit,
    session: str = "",
    priority: Priority = Priority.CHAT,
    adapter: str = "",
) -> Finished:
    """Makes the answer, telling `emit` each event but the last, which is returned.

    An engine that dies before the first token is asked once more: nobody has seen anything yet. But not by a line of
    a batch that may be what it died of: that is asked again by itself, so as not to take others along. What has to
    make way for a person goes on afterwards, where it was.

    Raises:
        RallyChatError: as the queue, the planning and the engine do.
    """
    again, refused = False, 0
    async with engine.using():
        while True:
            try:
                return await _attempt(
                    growth, engine, plan, family, sampling, emit, session, priority, adapter
                )
            except Preempted:
                refused = 0
                await _rewind(growth, engine.client)
            except EngineUnavailable as exc:  # it died of something else, before it heard of this
                refused += 1
                await _refused(engine, refused, exc)
            except EngineInterrupted as exc:
                refused = 0
                if growth.completion_tokens and not exc.hung and priority is not Priority.BATCH:
                    raise
                await engine.recover(hung=exc.hung)
                if again or growth.completion_tokens or (growth.reached and priority is Priority.BATCH):
                    raise
                again = True


async def _refused(engine: Engine, times: int, exc: EngineUnavailable) -> None:
    await engine.recover(hung=False)
    if times >= REFUSALS:
        raise EngineUnavailable(
            f"The engine of '{engine.spec.model}' is there, but could not be asked {times} times in a row.",
            hint="ask again later; an admin finds more in the server's log",
        ) from exc
    await asyncio.sleep(PAUSE * 2 ** (times - 1))


@asynccontextmanager
async def in_time(growth: Growth) -> AsyncIterator[None]:
    """What is waited for within the block must be there before who asked gives up.

    Raises:
        Late: it was not.
    """
    try:
        async with asyncio.timeout(None if growth.until is None else growth.until - time.monotonic()):
            yield
    except TimeoutError as exc:
        waited = growth.elapsed_ms() / 1000
        raise Late(
            f"The model was not ready within the timeout of this request: it waited for {waited:.1f} s.",
            retry_after=NOT_READY,
            hint="try again later, or give it more time",
        ) from exc


async def logged_ids(growth: Growth, client: EngineClient) -> tuple[int, ...] | None:
    """The answer's tokens as far as they stand for its text, or None where that is not known.

    What the engine generated beyond the text does not belong into the next prompt: the end-of-turn token (the
    template writes its own), half a character, a stop string.
    """
    text = "".join(growth.raw)
    ids = tuple(growth.ids or ())
    for _ in range(min(len(ids), BEYOND)):
        said = await client.detokenize(ids)
        if said.removeprefix(" ") == text.removeprefix(" "):
            return ids
        if not said.startswith(text):
            return None
        ids = ids[:-1]
    return None


async def _rewind(growth: Growth, client: EngineClient) -> None:
    """Back to what was told, so that the answer can go on from there in another request.

    Where its tokens are not known exactly, others of the same text stand for them.
    """
    if not growth.completion_tokens:
        return
    ids = await logged_ids(growth, client)
    if ids is None:
        (said,) = await client.tokenize([Piece("".join(growth.raw), special=False)])
        ids = tuple(said)
    growth.ids, growth.completion_tokens = list(ids), len(ids)


async def _attempt(
    growth: Growth,
    engine: Engine,
    make_plan: Callable[[], Awaitable[Plan]],
    family: Family,
    sampling: Sampling,
    emit: Emit,
    session: str,
    priority: Priority,
    adapter: str,
) -> Finished:
    so_far, growth.reached = growth.completion_tokens, False
    plan = growth.plan = growth.plan if so_far and growth.plan else await make_plan()
    growth.planned_ms = growth.planned_ms or growth.elapsed_ms()
    ends = await ends_of(family, engine.client)
    given = growth.ids if so_far else None
    request = _request(plan, sampling, family, engine, ends=ends, adapter=adapter, so_far=given)
    asked = engine.slot(
        request.prompt,
        notify=emit,
        priority=priority,
        session=session,
        since=growth.began,
        until=growth.until,
        again=growth.admitted,
    )
    async with asked as slot:
        growth.until, growth.admitted = None, True
        if not so_far:
            growth.queued_ms = growth.elapsed_ms()
            emit(Started(plan.report))
        growth.reached = True
        if priority is not Priority.CHAT:
            await _sip(growth, request, engine, slot)
        async with aclosing(engine.generate(request, slot, session=_opaque(session))) as events:
            async for event in events:
                match event:
                    case Prefill():
                        growth.cached_tokens = (
                            growth.cached_tokens if so_far else max(0, event.cached - growth.sipped)
                        )
                    case Tokens():
                        _grow(growth, event, emit)
                    case Done():
                        return _end(growth, event, emit, so_far)
    raise EngineInterrupted("The engine ended the stream without a word.", hint="ask again")


async def _sip(growth: Growth, request: CompletionRequest, engine: Engine, slot: Slot) -> None:
    """Reads the prompt in small steps where a person may come at any time: they wait for one of these at most."""
    ids, info = request.prompt[:-1], engine.info
    if not (info.slot_affinity and engine.queue.lately):
        return
    before = reusable(slot.ids, ids, rollback=info.rollback)
    try:
        await engine.warm(ids, slot, adapter=request.model)
    finally:
        growth.sipped += max(0, reusable(slot.ids, ids, rollback=info.rollback) - before)


def _grow(growth: Growth, event: Tokens, emit: Emit) -> None:
    now = time.monotonic()
    if growth.told_at:
        growth.gaps.append(now - growth.told_at)
    else:
        growth.first_token_ms = growth.elapsed_ms()
    growth.told_at = now
    count = max(1, len(event.ids))
    growth.completion_tokens += count
    growth.reasoning_tokens += count if growth.parser.thinking else 0
    growth.raw.append(event.text)
    if event.text and not event.ids:
        growth.ids = None
    elif growth.ids is not None:
        growth.ids.extend(event.ids)
    for delta in growth.parser.feed(event.text):
        emit(delta)


def _end(growth: Growth, event: Done, emit: Emit, so_far: int) -> Finished:
    for delta in growth.parser.finish():
        emit(delta)
    growth.completion_tokens = so_far + event.completion_tokens
    growth.cached_tokens = growth.cached_tokens if so_far else max(0, event.cached_tokens - growth.sipped)
    if growth.plan:
        evaluated = max(0, len(growth.plan.ids) - growth.cached_tokens)
        report = replace(growth.plan.report, reused_tokens=growth.cached_tokens, evaluated_tokens=evaluated)
        growth.plan = replace(growth.plan, report=report)
    return Finished(event.reason, growth.usage, growth.timings)


async def ends_of(family: Family, client: EngineClient) -> list[int]:
    """The tokens that end an answer, as the family says: by their texts, else by their ids."""
    if not family.stop_tokens:
        return list(family.stop_ids)
    known = _KNOWN_ENDS.setdefault(client, {})
    if family.stop_tokens not in known:
        found = await client.tokenize([Piece(text) for text in family.stop_tokens])
        known[family.stop_tokens] = [ids[0] for ids in found if len(ids) == 1]
    return known[family.stop_tokens]


def _request(
    plan: Plan,
    sampling: Sampling,
    family: Family,
    engine: Engine,
    *,
    ends: list[int],
    adapter: str,
    so_far: list[int] | None,
) -> CompletionRequest:
    asked = sampling.over(FALLBACK)
    room = engine.info.window - len(plan.ids)
    given = asked.as_dict() | {
        "max_tokens": max(0, min(asked.max_tokens or room, room) - len(so_far or ())),
        "stop": [*family.stop, *(asked.stop or ())],
        "stop_token_ids": ends,
    }
    prompt = [*plan.ids, *(so_far or ())]
    said = plan.said + len(so_far or ())
    return CompletionRequest(model=adapter or engine.spec.model, prompt=prompt, said=said, **given)


def _opaque(session: str) -> str | None:
    """A conversation's name that tells an engine nothing but that it is the same one."""
    return hashlib.blake2b(session.encode(), digest_size=16).hexdigest() if session else None
