"""An answer that another process makes, watched from here as it is stored there: without a gap or a repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Literal

from rallychat.errors import NotFound, StoreUnavailable
from rallychat.messages import Failed, Finished, Part, ReasoningDelta, Text, TextDelta
from rallychat.runs import Emit, End, Run
from rallychat.store import ConversationStore, StoredMessage
from rallychat.store.types import Grown

QUIET = 4
"""Looks without news after which we ask whether its process still lives."""

Delta = TextDelta | ReasoningDelta


class Followed(Run):
    """A run like any other to those who watch it. Stopping it asks its owner to stop.

    Args:
        answer: which, as it is stored.
    """

    made_here = False

    def __init__(self, store: ConversationStore, answer: StoredMessage, *, conversation_id: str) -> None:
        self._store = store
        self._ended_as: End | None = None
        super().__init__(
            self._follow,
            self._as_it_ended,
            conversation_id=conversation_id,
            message_id=answer.id,
            user_message_id=answer.parent_id,
        )

    async def stop(self, reason: Literal["cancelled", "interrupted"] = "cancelled") -> End:
        """Asks its owner to end it, and waits until it has. `interrupted` ends only the watching."""
        if reason == "interrupted" or self.done:
            return await super().stop("interrupted")
        with suppress(NotFound):  # in the trash, or gone: its owner ends it unasked
            await self._store.growing.ask_to_stop(self.message_id)
        return await self.wait()

    async def _follow(self, emit: Emit) -> Finished:
        told = _Told()
        quiet = 0
        while True:
            try:
                grown = await self._store.growing.get(self.message_id)
                news = [*told.news(grown)]
                for delta in news:
                    emit(delta)
                if grown.answer.status != "running":
                    self._ended_as = _end(grown.answer)
                    return Finished("stop")
                quiet = 0 if news else quiet + 1
                if quiet >= QUIET:
                    quiet = 0
                    if await self._store.interrupt_orphans():
                        continue
            except StoreUnavailable:  # it goes on there; we go on when the database is back
                pass
            await self._store.growing.changed(self.message_id)

    async def _as_it_ended(self, end: End) -> End:
        return end if self._ended_as is None else self._ended_as


def _end(answer: StoredMessage) -> End:
    reason = answer.finish_reason or "interrupted"
    if reason == "error":
        return Failed(answer.error_code or "engine_error", answer.error or "The answer failed.")
    known = {name: value for name in ("usage", "timings") if (value := getattr(answer, name)) is not None}
    return Finished(reason, report=answer.report, **known)


class _Told:
    """What was told so far of one answer.

    With the lengths of its deltas, each is told as it was told first; while it grows only those that are stored
    whole. Without, what came since the last look is told in one.
    """

    def __init__(self) -> None:
        self._deltas = 0
        self._lengths: list[int] = []

    def news(self, grown: Grown) -> Iterator[Delta]:
        """What has come since."""
        ended = grown.answer.status != "running"
        if grown.cuts is None:
            yield from self._longer(grown.answer.parts)
            return
        every = [*_cut(grown.answer.parts, grown.cuts, to_the_end=ended)]
        yield from every[self._deltas :]
        self._deltas = max(self._deltas, len(every))

    def _longer(self, parts: Sequence[Part]) -> Iterator[Delta]:
        self._lengths += [0] * (len(parts) - len(self._lengths))
        for index, part in enumerate(parts):
            if fresh := part.text[self._lengths[index] :]:
                self._lengths[index] = len(part.text)
                yield _delta(part, fresh)


def _cut(parts: Sequence[Part], cuts: Iterable[int], *, to_the_end: bool) -> Iterator[Delta]:
    lengths = iter(cuts)
    for part in parts:
        at = 0
        while at < len(part.text):
            length = next(lengths, 0)
            if not to_the_end and (not length or at + length > len(part.text)):
                return
            piece = part.text[at : at + (length or len(part.text))]
            at += len(piece)
            yield _delta(part, piece)


def retold(parts: Sequence[Part], cuts: Sequence[int]) -> Iterator[Delta]:
    """A stored answer in the deltas it was told in; what the cuts do not cover comes as one delta a part.

    So does an empty part, which holds the place of something that was taken out.
    """
    lengths = iter(cuts)
    for part in parts:
        yield from _cut([part], lengths, to_the_end=True) if part.text else [_delta(part, "")]


def _delta(part: Part, text: str) -> Delta:
    return TextDelta(text) if isinstance(part, Text) else ReasoningDelta(text)


async def follow(store: ConversationStore, message_id: str, *, conversation_id: str) -> Followed | None:
    """The answer, if another process is making it; None if nobody is, or if we are."""
    try:
        grown = await store.growing.get(message_id)
        if grown.answer.status == "running" and not grown.is_mine:
            await store.interrupt_orphans()
            grown = await store.growing.get(message_id)
    except NotFound:
        return None
    if grown.answer.status != "running" or grown.is_mine:
        return None
    return Followed(store, grown.answer, conversation_id=conversation_id)


async def is_made(store: ConversationStore, message_id: str) -> bool:
    """Whether the process that makes an answer still lives, and has not ended it."""
    await store.interrupt_orphans()
    try:
        return (await store.message(message_id)).status == "running"
    except NotFound:
        return False
