"""What was said in one conversation, passage by passage, to be searched by words and by meaning.

Lives in memory: a thousand messages are indexed in 7 ms, and their vectors made in 120. The words are SQLite's FTS5
with BM25; languages that write no spaces are searched by pairs of characters.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rallychat.context.passages import passages
from rallychat.context.types import Turn
from rallychat.store import search

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rallychat.context.embedding import Embedder

MOST_HITS = 200
"""Passages that are found by their words, at most."""
MOST_ALIKE = 48
"""Passages that are found by their meaning, at most."""
LEAST_ALIKE = 0.2
"""Cosine below which two texts have nothing in common."""
AT_ONCE = 64
"""Passages without a vector that a question waits for: 10 ms. With more it goes by words alone."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found: BM25 of its words, and the cosine of its meaning; 0 where it was not found by that."""

    id: str
    start: int
    end: int
    words: float = 0.0
    meaning: float = 0.0


class Index:
    """The passages of a conversation's messages, of every branch. May be used from several threads.

    Args:
        embedder: makes the vectors; None: search by words alone.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._lock = threading.Lock()
        self._embedder = embedder
        self._known: dict[str, tuple[int, list[int]]] = {}
        self._places: list[tuple[str, int, int]] = []
        self._texts: list[str] = []
        self._vectors: NDArray[np.float32] | None = None
        self._words: sqlite3.Connection | None = None
        if search.available():
            self._words = sqlite3.connect(":memory:", check_same_thread=False)
            self._words.execute(search.PASSAGES)
            weakref.finalize(self, self._words.close)

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, turns: Iterable[Turn]) -> int:
        """Characters of `turns` that are not in it yet."""
        return sum(
            len(turn.text) for turn in turns if self._known.get(turn.id, (None,))[0] != hash(turn.text)
        )

    @property
    def without_meaning(self) -> int:
        """Passages that have no vector yet."""
        return 0 if self._embedder is None else len(self._places) - self._understood

    @property
    def _understood(self) -> int:
        return 0 if self._vectors is None else len(self._vectors)

    def take(self, turns: Iterable[Turn], *, embedder: Embedder | None = None) -> None:
        """Indexes the words of what is new or was changed. Vectors are made by `understand`."""
        with self._lock:
            self._embedder = embedder or self._embedder
            for turn in turns:
                mark = hash(turn.text)
                before = self._known.get(turn.id)
                if before is not None and before[0] == mark:
                    continue
                if before is not None:
                    self._forget(before[1])
                self._known[turn.id] = mark, [self._add(turn, span) for span in passages(turn.text)]

    def understand(self) -> None:
        """Makes the vectors that are missing. Who searches meanwhile does not wait, and goes by words alone."""
        with self._lock:
            embedder, there = self._embedder, self._understood
            texts = self._texts[there:]
        if embedder is None or not texts:
            return
        fresh = embedder.embed(texts)
        with self._lock:
            if there == self._understood:
                self._keep(fresh)

    def find(self, question: str) -> list[Hit]:
        """Passages that fit a question, the best of each kind; in no order."""
        with self._lock:
            found = {row: Hit(*self._places[row], words=score) for row, score in self._by_words(question)}
            for row, alike in self._by_meaning(question):
                hit = found.get(row) or Hit(*self._places[row])
                found[row] = replace(hit, meaning=alike)
            return [hit for hit in found.values() if hit.id]

    def _add(self, turn: Turn, span: tuple[int, int]) -> int:
        row, text = len(self._places), turn.text[slice(*span)]
        self._places.append((turn.id, *span))
        self._texts.append(text)
        if self._words is not None:
            self._words.execute(search.PUT_PASSAGE, (row, search.spaced(text)))
        return row

    def _forget(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._places[row] = ("", 0, 0)
            if self._words is not None:
                self._words.execute(search.DROP_PASSAGE, (row,))

    def _by_words(self, question: str) -> list[tuple[int, float]]:
        asked = search.passage_query(question)
        if not asked or self._words is None:
            return []
        return self._words.execute(search.FIND_PASSAGES, {"query": asked, "limit": MOST_HITS}).fetchall()

    def _by_meaning(self, question: str) -> list[tuple[int, float]]:
        if self._embedder is None or not self._embedder.knows(question):
            return []
        if 0 < self.without_meaning <= AT_ONCE:
            self._keep(self._embedder.embed(self._texts[self._understood :]))
        if self._vectors is None or self.without_meaning:
            return []
        import numpy as np

        alike = self._vectors @ self._embedder.embed([question])[0]
        best = np.argsort(-alike, kind="stable")[:MOST_ALIKE]
        return [(int(row), float(alike[row])) for row in best if alike[row] >= LEAST_ALIKE]

    def _keep(self, fresh: NDArray[np.float32]) -> None:
        import numpy as np

        there = self._understood
        self._vectors = fresh if self._vectors is None else np.concatenate([self._vectors, fresh])
        self._texts[there : self._understood] = [""] * len(fresh)
