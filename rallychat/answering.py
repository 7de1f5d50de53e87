"""One answer: from a planned prompt to events. Knows engine events and reasoning tags; stores nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from rallychat.catalog import Family, Sampling
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, Done, Prefill, Tokens
from rallychat.errors import EngineInterrupted
from rallychat.messages import Failed, Finished, Part, Piece, Queued, Started, Timings, Usage
from rallychat.parsing import AnswerParser
from rallychat.planning import Plan
from rallychat.pool import Engine, Preempted, Priority
from rallychat.runs import Emit

FALLBACK = Sampling(temperature=0.7, top_p=0.95, top_k=0, min_p=0.05, repetition_penalty=1.0)
"""What holds where neither the asker, nor the user's settings, nor model or family say anything."""


_KNOWN_ENDS: WeakKeyDictionary[EngineClient, dict[tuple[str, ...], list[int]]] = WeakKeyDictionary()
"""What families' end tokens are in an engine's vocabulary."""
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
    reasoning_tokens: int = 0
    cuts: list[int] = field(default_factory=list)
    """Lengths of the deltas that were told."""
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

    An engine that dies before the first token is asked once more: nobody has seen anything yet. What has to make
    way for a person goes on afterwards, where it was.

    Raises:
        RallyChatError: as the queue, the planning and the engine do.
    """
    async with engine.using():
        try:
            while True:
                try:
                    return await _attempt(
                        growth, engine, plan, family, sampling, emit, session, priority, adapter
                    )
                except Preempted:
                    await _rewind(growth, engine.client)
        except EngineInterrupted as exc:
            if growth.completion_tokens and not exc.hung:
                raise
            await engine.recover(hung=exc.hung)
            if growth.completion_tokens:
                raise
            return await _attempt(growth, engine, plan, family, sampling, emit, session, priority, adapter)


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

    Raises:
        EngineInterrupted: its tokens are not known.
    """
    if not growth.completion_tokens:
        return
    ids = await logged_ids(growth, client)
    if ids is None:
        raise EngineInterrupted("This answer had to make way and cannot go on.", hint="ask again")
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
    so_far = growth.completion_tokens
    plan = growth.plan = growth.plan if so_far and growth.plan else await make_plan()
    ends = await ends_of(family, engine.client)
    given = growth.ids if so_far else None
    request = _request(plan, sampling, family, engine, ends=ends, adapter=adapter, so_far=given)
    asked = engine.slot(request.prompt, notify=lambda n: emit(Queued(n)), priority=priority, session=session)
    async with asked as slot:
        if not so_far:
            growth.queued_ms = growth.elapsed_ms()
            emit(Started(plan.report))
        async with aclosing(engine.generate(request, slot, session=_opaque(session))) as events:
            async for event in events:
                match event:
                    case Prefill():
                        growth.cached_tokens = growth.cached_tokens if so_far else event.cached
                    case Tokens():
                        _grow(growth, event, emit)
                    case Done():
                        return _end(growth, event, emit, so_far)
    raise EngineInterrupted("The engine ended the stream without a word.", hint="ask again")


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
    growth.cached_tokens = growth.cached_tokens if so_far else event.cached_tokens
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
    return CompletionRequest(model=adapter or engine.spec.model, prompt=prompt, **given)


def _opaque(session: str) -> str | None:
    """A conversation's name that tells an engine nothing but that it is the same one."""
    return hashlib.blake2b(session.encode(), digest_size=16).hexdigest() if session else None
