"""What is found of what was said: an index of each conversation that is talked in, and the search in the others.

Nobody waits for an index that is large, or for vectors: they are made in idle time, and until then the search goes
by what is there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from rallychat.context import embedding
from rallychat.context.embedding import Embedder
from rallychat.context.index import AT_ONCE, Hit, Index
from rallychat.context.retrieval import Quote, quotes, scores, wanted
from rallychat.context.types import Turn
from rallychat.settings import Settings
from rallychat.store import ConversationStore

MOST_PASSAGES = 60_000
"""Passages kept in memory over all conversations: about 100 MB with their vectors."""
MUCH = 60_000
"""Characters from which on they are indexed in a thread."""
OTHERS = 40
"""Messages of other conversations that are looked at."""


class Recall:
    """The search in what was said.

    Raises:
        SettingsError: search by meaning is asked for, and what it needs is not installed.
    """

    def __init__(self, settings: Settings, store: ConversationStore) -> None:
        self._store = store
        self._meaning = settings.retrieval != "words" and embedding.installed()
        self._embedder: Embedder | None = embedding.embedder() if settings.retrieval == "fused" else None
        self._indexes: OrderedDict[str, Index] = OrderedDict()

    async def search(self, conversation_id: str, turns: Sequence[Turn], question: str) -> list[Hit]:
        """Passages of these turns that fit a question; by words alone while vectors are missing."""
        index = await self._index(conversation_id, turns)
        there = {turn.id for turn in turns}
        return [hit for hit in index.find(question) if hit.id in there]

    async def keep(self, conversation_id: str, turns: Sequence[Turn]) -> None:
        """Indexes in idle time what was said, so that no question has to wait for it."""
        if self._meaning and self._embedder is None:
            self._embedder = await asyncio.to_thread(embedding.embedder)
        index = await self._index(conversation_id, turns)
        if index.without_meaning > AT_ONCE:
            await asyncio.to_thread(index.understand)

    async def elsewhere(self, conversation_id: str, question: str, room: int) -> list[Quote]:
        """Quotes of this person's other conversations that fit a question, within `room` tokens.

        None of what was deleted, archived or excluded, or stands in a branch that was left.
        """
        if room <= 0 or not wanted(question):
            return []
        said = await self._store.contexts.elsewhere(question, but=conversation_id, limit=OTHERS)
        turns = [Turn(row.id, row.role, row.text, len(row.text) // 4 + 8, row.created_at) for row, _ in said]
        index = Index(self._embedder)
        index.take(turns)
        titles = {row.id: title for row, title in said}
        found = scores(turns, index.find(question), question)
        return [_titled(quote, titles[quote.id]) for quote in quotes(turns, found, room=room)]

    async def _index(self, conversation_id: str, turns: Sequence[Turn]) -> Index:
        index = self._indexes.pop(conversation_id, None) or Index()
        self._indexes[conversation_id] = index
        if index.missing(turns) > MUCH:
            await asyncio.to_thread(index.take, turns, embedder=self._embedder)
        else:
            index.take(turns, embedder=self._embedder)
        while len(self._indexes) > 1 and sum(map(len, self._indexes.values())) > MOST_PASSAGES:
            self._indexes.popitem(last=False)
        return index


def _titled(quote: Quote, title: str) -> Quote:
    """The quote with the conversation it is from."""
    return replace(quote, line=f"“{title}”, {quote.line}" if title else quote.line, of=title)


async def searched(turns: Sequence[Turn], question: str) -> list[Hit]:
    """The same search, by words, in turns that are in no store."""
    index = Index()
    index.take(turns)
    return index.find(question)
