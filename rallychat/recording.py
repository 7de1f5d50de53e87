"""What is stored of answers: while they grow, and how they ended. Knows the store and the token log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from rallychat import tracing
from rallychat.answering import Growth, logged_ids
from rallychat.errors import (
    Conflict,
    EngineError,
    EngineInterrupted,
    NotFound,
    RallyChatError,
    StoreError,
    StoreUnavailable,
)
from rallychat.logs import run_id
from rallychat.messages import Event, Failed, Finished, FinishReason, ReasoningDelta, TextDelta
from rallychat.parsing import AnswerParser
from rallychat.pool import Pool
from rallychat.runs import Emit, End, Run
from rallychat.store import ConversationStore, StoredMessage, TokenSpan

RETRY = 1.0
"""Seconds between two attempts to store how an answer ended."""
ATTEMPTS = 10
"""Attempts its viewers wait for."""
Finish = Callable[[], Awaitable[object]]


class Recorder:
    """Writes answers to the store.

    Args:
        store: where they belong.
        pool: the engines that made them; asked which of the tokens stand for the text.
    """

    def __init__(self, store: ConversationStore, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._growths: dict[str, Growth] = {}
        self._tells: dict[str, Emit] = {}

    def open(self, answer: StoredMessage, parser: AnswerParser) -> Growth:
        """A growth for `answer`, saved from now on until it is concluded."""
        cuts = [len(part.text) for part in answer.parts if part.text]
        growth = self._growths[answer.id] = Growth(parser, cuts=cuts)
        self._store.journal.begin(answer.id, answer.parts)
        return growth

    def telling(self, answer: StoredMessage, emit: Emit) -> Emit:
        """`emit`, with each word journalled before anybody sees it."""
        journal, growth = self._store.journal, self._growths[answer.id]

        def tell(event: Event) -> None:
            if isinstance(event, TextDelta | ReasoningDelta):
                journal.add(answer.id, event)
                growth.cuts.append(len(event.text))
            emit(event)

        self._tells[answer.id] = tell
        return tell

    async def conclude(self, growth: Growth, answer: StoredMessage, end: End) -> End:
        """Stores how an answer ended, in one transaction, and the token log beside it."""
        began = time.monotonic()
        self._growths.pop(answer.id, None)
        tell = self._tells.pop(answer.id, None)
        for delta in growth.parser.finish():  # held back in case it was the beginning of a tag
            if tell is not None:
                tell(delta)
        failed = end if isinstance(end, Failed) else None
        plan = growth.plan
        if plan is not None:
            others = {key: span for key, span in plan.spans.items() if key != answer.id}
            with suppress(StoreError):  # they only spare work: what has to be stored is the answer's end
                await self._store.save_spans(others)
        finish = partial(
            self._store.answers.finish,
            answer.id,
            parts=growth.parts,
            reason=_reason(end),
            error=str(RallyChatError(failed.message, hint=failed.hint)) if failed else None,
            error_code=failed.code if failed else None,
            usage=growth.usage,
            timings=growth.timings,
            report=plan.report if plan else None,
            span=await self._span(growth, answer),
            cuts=growth.cuts,
        )
        await self._stored(answer.id, finish)
        traced(growth, answer.model or "", end, storing=began)
        return growth.closed(end)

    async def _stored(self, message_id: str, finish: Finish) -> None:
        """Stores an end. While the database is away its viewers wait a little; what is left, `Runs` tries later."""
        for attempt in range(ATTEMPTS):
            try:
                await finish()
            except StoreUnavailable:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(RETRY)
                continue
            except (Conflict, NotFound) as exc:  # it has ended, or is gone with its user or its conversation
                self._store.journal.end(message_id)
                if not attempt or isinstance(exc, NotFound):
                    raise
                return  # it was stored, only the news of that was lost
            self._store.journal.end(message_id)
            return

    async def _span(self, growth: Growth, answer: StoredMessage) -> TokenSpan | None:
        """The answer's tokens for the log, where they are known exactly."""
        engine = self._pool.find(answer.model or "")
        if growth.plan is None or not growth.plan.key or engine is None:
            return None
        try:
            ids = await logged_ids(growth, engine.client)
        except EngineError:  # it has just died: the next turn tokenises the text again
            return None
        before = growth.plan.spans.get(answer.id)
        return TokenSpan(growth.plan.key, (*(before.ids if before else ()), *ids)) if ids else None

    async def save(self, runs: list[Run]) -> set[str]:
        """Stores what has arrived of all these runs, in one transaction. Returns those that are to be stopped."""
        stored = [run for run in runs if run.message_id]
        growing = [(run.message_id, self._growths.get(run.message_id)) for run in stored]
        told = {row: g for row, g in growing if g is not None and g.completion_tokens}
        await self._store.answers.save(
            [(row, g.parts, None) for row, g in told.items()],
            cuts={row: [*g.cuts] for row, g in told.items()},
        )
        unwanted = await self._store.growing.asked_to_stop([run.message_id for run in stored])
        # who was shut out before their answer was stored, or whose is not stored: there was no row to say so
        kept_out = await self._store.people.kept_out({run.user_id for run in runs if run.has_account})
        return {run.id for run in runs if run.message_id in unwanted or run.user_id in kept_out}


def traced(growth: Growth, model: str, end: End, *, storing: float | None = None) -> None:
    """Tells an answer that has ended as a span with its steps; `storing`: when its end began to be stored."""
    now = time.monotonic()
    steps = growth.steps(storing or now) | ({"store": (storing, now)} if storing else {})
    usage = growth.usage
    attributes: dict[str, str | int] = {
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "rallychat.cached_tokens": usage.cached_tokens,
        "rallychat.end": end.code if isinstance(end, Failed) else end.reason,
        "rallychat.run_id": run_id.get(),
    }
    tracing.turn(attributes, steps, failed=isinstance(end, Failed))


def _reason(end: End) -> FinishReason:
    if isinstance(end, Finished):
        return end.reason
    return "interrupted" if end.code == EngineInterrupted.code else "error"
