"""Making room where no idle time comes: the next prompt is read into another slot while an answer is written.

It rides along with the answer of its own conversation, some tokens in an engine step. Nobody who waits for a first
token shares the engine with it, and what it takes from those who are being answered is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from rallychat.compacting import Compacting, Making, Scene
from rallychat.contexts import Contexts
from rallychat.engines.slots import reusable
from rallychat.messages import ContextReport
from rallychat.pool import Apart, Preempted, Priority, Slot
from rallychat.store import ConversationStore

SLICES = (4, 32)
"""Tokens read at a time, at least and at most."""
BESIDE_OTHERS = 8
"""Tokens read at a time while other people are answered: each of them waits that little longer, once in a while."""
FLUENT = 0.15
"""Seconds a slice may take. A slice is about three tokens of the answer: it still comes at 20 tokens a second, faster
than anybody reads."""
SHARE_OTHERS = 0.05
"""Share of the time that slices may take while other people are answered."""
SHARE_SLOW = 0.1
"""The same where only this conversation is, on an engine for which even the smallest slice is not fluent."""
FOLLOW = 16
"""Tokens of the growing answer that are read at a time, once all before it is there."""
UNSURE = 8
"""Tokens at the end of a growing text that may still become others."""
LOOK = 0.1
"""Seconds between two looks at a growing answer."""


def late(report: ContextReport) -> bool:
    """So long a prompt that room is made by rules, though a model would have written the memory in idle time."""
    mark, limit = report.high_mark, report.budget
    return report.prompt_tokens > min(mark * 3 // 2, (mark + limit) // 2)


def allowance(size: int, took: float, *, others: bool) -> tuple[int, float]:
    """How many tokens the next slice has, and seconds until then, after one of `size` that took so long."""
    if others:
        return BESIDE_OTHERS, took * (1 / SHARE_OTHERS - 1)
    least, most = SLICES
    if took > FLUENT:
        return max(least, size // 2), 0.0 if size > least else took * (1 / SHARE_SLOW - 1)
    return (min(most, size * 2), 0.0) if took < FLUENT / 2 else (size, 0.0)


class Riding:
    """Rides of all conversations.

    Args:
        said: what a conversation's growing answer says so far; None: none grows.
    """

    def __init__(
        self,
        store: ConversationStore,
        contexts: Contexts,
        compacting: Compacting,
        said: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._compacting = compacting
        self._said = said

    async def ride(self, scene: Scene, report: ContextReport) -> None:
        """Makes room if that was due before this answer began, and follows the answer to its end.

        Raises:
            Crowded: no slot can be had without harm to others.
        """
        making = await self._due(scene, report)
        if making is None:
            return
        ids = await self._ids(scene, making, "")
        slot = await self._read(scene, ids, apart="only")
        if not await self._compacting.swap(scene, making):
            return
        scene.engine.queue.settle(scene.session, slot)
        if scene.engine.info.rollback:
            await self._follow(scene, making)

    async def _due(self, scene: Scene, report: ContextReport) -> Making | None:
        path = await self._store.path(scene.session)
        if len(path) < 3 or path[-1].status != "running" or path[-3].role != "assistant":
            return None
        making = await self._compacting.begun(scene, tip=path[-3].id)
        if making is None or (making.memory is None and not late(report)):
            return None
        making.memory = making.memory or making.due.rules
        return making

    async def _ids(self, scene: Scene, making: Making, growing: str) -> list[int]:
        plan = await self._contexts.ahead(
            scene.conversation,
            model=scene.model,
            engine=scene.engine,
            max_tokens=scene.max_tokens,
            wish=scene.wish,
            memory=making.memory,
            growing=growing,
        )
        return plan.ids[:-UNSURE] if growing else plan.ids

    async def _read(self, scene: Scene, ids: list[int], *, apart: Apart) -> Slot:
        """Reads all of it, slice by slice; returns the slot that holds it."""
        engine, size = scene.engine, BESIDE_OTHERS
        while True:
            asked = scene.slot(ids, Priority.COMPACTION, apart=apart, beside=True)
            async with asked as slot:
                began = time.monotonic()
                with suppress(Preempted):  # what was read stays, and it goes on when nobody waits
                    if self._held(scene, slot, ids) < len(ids):
                        async with self._compacting.counted(scene):
                            await engine.warm(ids, slot, adapter=scene.model.adapter, most=size)
                took = time.monotonic() - began
                if self._held(scene, slot, ids) == len(ids):
                    return slot
            size, pause = allowance(size, took, others=engine.queue.others(scene.session))
            await asyncio.sleep(pause)

    async def _follow(self, scene: Scene, making: Making) -> None:
        while (said := self._said(scene.session)) is not None:
            home = scene.engine.queue.home(scene.session)
            if home is None:
                return  # somebody needed it more
            ids = await self._ids(scene, making, said) if said else []
            if len(ids) - self._held(scene, home, ids) >= FOLLOW:
                await self._read(scene, ids, apart="no")
            else:
                await asyncio.sleep(LOOK)

    def _held(self, scene: Scene, slot: Slot, ids: list[int]) -> int:
        return reusable(slot.ids, ids, rollback=scene.engine.info.rollback)
