"""What is stored of answers: while they grow, and how they ended. Knows the store and the token log."""

from __future__ import annotations

from rallychat.answering import Growth, logged_ids
from rallychat.errors import EngineError, EngineInterrupted, RallyChatError
from rallychat.messages import Event, Failed, Finished, FinishReason, ReasoningDelta, TextDelta
from rallychat.parsing import AnswerParser
from rallychat.pool import Pool
from rallychat.runs import Emit, End, Run
from rallychat.store import ConversationStore, StoredMessage, TokenSpan


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
        cuts = [len(part.text) for part in answer.parts]
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
        self._growths.pop(answer.id, None)
        tell = self._tells.pop(answer.id, None)
        for delta in growth.parser.finish():  # held back in case it was the beginning of a tag
            if tell is not None:
                tell(delta)
        plan = growth.plan
        if plan is not None and plan.spans:
            await self._store.save_spans({key: span for key, span in plan.spans.items() if key != answer.id})
        await self._store.finish(
            answer.id,
            parts=growth.parts,
            reason=_reason(end),
            error=str(RallyChatError(end.message, hint=end.hint)) if isinstance(end, Failed) else None,
            usage=growth.usage,
            timings=growth.timings,
            report=plan.report if plan else None,
            span=await self._span(growth, answer),
            cuts=growth.cuts,
        )
        self._store.journal.end(answer.id)
        return growth.closed(end)

    async def _span(self, growth: Growth, answer: StoredMessage) -> TokenSpan | None:
        """The answer's tokens for the log, where they are known exactly."""
        engine = self._pool.find(answer.model or "")
        if growth.plan is None or not growth.plan.key or engine is None:
            return None
        try:
            ids = await logged_ids(growth, engine.client)
        except EngineError:  # it has just died: the next turn tokenises the text again
            return None
        before = (growth.plan.spans or {}).get(answer.id)
        return TokenSpan(growth.plan.key, (*(before.ids if before else ()), *ids)) if ids else None

    async def save(self, runs: list[Run]) -> None:
        """Stores what has arrived of all these runs, in one transaction."""
        growing = [(run.message_id, self._growths.get(run.message_id)) for run in runs]
        await self._store.save(
            [(row, g.parts, None) for row, g in growing if g is not None and g.completion_tokens]
        )


def _reason(end: End) -> FinishReason:
    if isinstance(end, Finished):
        return end.reason
    return "interrupted" if end.code == EngineInterrupted.code else "error"
