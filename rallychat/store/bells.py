"""Whoever waits for something to change, by name. Rung for what was heard; nobody waits longer than a moment."""

from __future__ import annotations

import asyncio
from collections import defaultdict

PATIENCE = 2.0
"""Seconds after which somebody looks although no bell rang: one may have been missed while nobody listened."""


class Bells:
    """One bell for every topic that somebody waits for."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def wait(self, topic: str) -> None:
        """Returns when the bell rings, or after `PATIENCE`."""
        rung = asyncio.Event()
        self._waiting[topic].add(rung)
        try:
            async with asyncio.timeout(PATIENCE):
                await rung.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[topic].discard(rung)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def ring(self, topic: str) -> None:
        """Wakes those who wait for `topic`."""
        for rung in self._waiting.get(topic, ()):
            rung.set()

    def ring_all(self) -> None:
        """Wakes everybody."""
        for topic in [*self._waiting]:
            self.ring(topic)
