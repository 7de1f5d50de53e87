"""Making room where no idle time comes: the next prompt is read into another slot while an answer is written.

It rides along with the answer of its own conversation, some tokens in an engine step, and begins so early that it is
there before the prompt passes its mark. Nobody who waits for a first token shares the engine with it, and what it takes
from those who are being answered is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from rallychat.compacting import Compacting, Making, Scene
from rallychat.engines.slots import reusable
from rallychat.messages import ContextReport
from rallychat.pool import Apart, Preempted, Priority, Slot
from rallychat.runs import Run
from rallychat.store import ConversationStore

SLICES = (4, 64)
"""Tokens read at a time, at least and at most."""
BESIDE_OTHERS = 8
"""Tokens read at a time while other people are answered: each of them waits that little longer, once in a while."""
FLUENT = 0.15
"""Seconds a slice may take. A slice is about three tokens of the answer: it still comes at 20 tokens a second, faster
than anybody reads."""
BEHIND = 0.3
"""The same once a question came before room was there: on a slow machine small slices read no faster than a
conversation grows, and the answer still comes at 10 tokens a second."""
SHARE_OTHERS = 0.05
"""Share of the time that slices may take while other people are answered."""
SHARE_SLOW = 0.1
"""The same where only this conversation is, on an engine for which even the smallest slice is not fluent."""
FOLLOW = 4
"""Tokens of the growing answer that are read at a time, once all before it is there. The last of them may still become
others, with the rest of their word; then they are read again."""
LETTERS = 2
"""Of a token, about: before so many have come it is not asked how many tokens they are."""
LOOK = 0.01
"""Seconds between two looks at a growing answer."""
LASTS = 1
"""Questions that come while room is made beside answers, where that is not known yet."""
LEAD = 0.2
"""Share of the mark by which it is begun earlier, at most: what is made earlier is made more often."""


def late(report: ContextReport) -> bool:
    """So long a prompt that room is made by rules, though a model would have written the memory in idle time."""
    mark, limit = report.high_mark, report.budget
    return report.prompt_tokens > min(mark * 3 // 2, (mark + limit) // 2)


def lead_of(report: ContextReport, turns: int) -> int:
    """Tokens that will stand behind the newest answer in a prompt when room that is begun now is there.

    Args:
        turns: exchanges until then, beside the question that is asked.
    """
    said = [part for part in report.segments if part.kind not in ("system", "memory")]
    answers = [at for at, part in enumerate(said, 1) if part.kind == "assistant"]
    at = answers[-1] if answers else 0
    exchange = sum(part.tokens for part in said[:at]) // max(1, len(answers))
    asked = sum(part.tokens for part in said[at:])
    return asked + min(turns * exchange, int(report.high_mark * LEAD))


def near(report: ContextReport, *, hurried: bool) -> bool:
    """A prompt near enough to its mark that room is made beside its answer.

    Args:
        hurried: the idle time before it was too short; else there may be enough after it.
    """
    ahead = int(report.high_mark * LEAD) if hurried else 0
    return report.prompt_tokens + ahead > report.high_mark


def allowance(size: int, took: float, *, others: bool, fluent: float = FLUENT) -> tuple[int, float]:
    """How many tokens the next slice has, and seconds until then, after one of `size` that took so long.

    Sizes are halved and doubled, so that they stay whole multiples of an engine's steps.
    """
    if others:
        return BESIDE_OTHERS, took * (1 / SHARE_OTHERS - 1)
    least, most = SLICES
    if took > fluent:
        return max(least, size // 2), 0.0 if size > least else took * (1 / SHARE_SLOW - 1)
    return min(most, size * 2) if took < fluent / 2 else size, 0.0


class Riding:
    """Rides of all conversations.

    Args:
        growing: the answer that grows in a conversation, if one does.
    """

    def __init__(
        self,
        store: ConversationStore,
        compacting: Compacting,
        growing: Callable[[str], Run | None],
    ) -> None:
        self._store = store
        self._compacting = compacting
        self._growing = growing

    async def ride(self, scene: Scene, report: ContextReport, *, hurried: bool) -> None:
        """Makes room if that is due, or will be, and follows the answer to its end, where prompts can be read ahead.

        Raises:
            Crowded: no slot can be had without harm to others.
        """
        if not scene.engine.info.extends:
            return
        run = self._growing(scene.session)
        lasts = self._compacting.lasts(scene.session)
        turns = 1 + (LASTS if lasts is None else lasts)
        making = await self._due(scene, report, lead_of(report, turns) if hurried else 0)
        if making is None or run is None:
            return
        slot = await self._read(scene, making, run, await self._ids(scene, making, ""), apart="only")
        if scene.engine.info.rollback and not scene.engine.queue.others(scene.session):
            slot = await self._catch_up(scene, making, run, slot, apart="only")
        if run.done or slot.session != scene.session:
            return  # too late: the next question finds the old prompt, all of it in its slot
        if not await self._compacting.swap(scene, making):
            return
        if slot.session != scene.session:
            return  # somebody needed it more: nobody holds it between two slices
        scene.engine.queue.settle(scene.session, slot)
        if scene.engine.info.rollback:
            await self._follow(scene, making, run)

    async def _due(self, scene: Scene, report: ContextReport, lead: int) -> Making | None:
        path = await self._store.path(scene.session)
        if len(path) < 3 or path[-1].status != "running" or path[-3].role != "assistant":
            return None
        making = await self._compacting.begun(scene, tip=path[-3].id, lead=lead)
        if making is None or (making.memory is None and not late(report)):
            return None
        making.memory = making.memory or making.due.rules
        making.again = 0.0  # the answer before was to be spared, not this one
        return making

    async def _ids(self, scene: Scene, making: Making, growing: str) -> list[int]:
        plan = await self._compacting.ahead(scene, memory=making.memory, growing=growing)
        return plan.ids

    async def _read(self, scene: Scene, making: Making, run: Run, ids: list[int], *, apart: Apart) -> Slot:
        """Reads all of it, slice by slice, as long as the answer is not stored; returns the slot that holds it."""
        engine = scene.engine
        while True:
            spared = not run.whole or engine.queue.others(scene.session)
            if spared and (pause := making.again - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            size = BESIDE_OTHERS if engine.queue.others(scene.session) else making.slice
            asked = scene.slot(ids, Priority.COMPACTION, apart=apart, beside=True)
            async with asked as slot:
                began, missing = time.monotonic(), len(ids) - self._held(scene, slot, ids)
                with suppress(Preempted):  # what was read stays, and it goes on when nobody waits
                    if missing > 0:
                        async with self._compacting.counted(scene):
                            await engine.warm(ids, slot, adapter=scene.model.adapter, most=size)
            ended = time.monotonic()
            others = engine.queue.others(scene.session)
            fluent = BEHIND if making.asked else FLUENT
            following, pause = allowance(size, ended - began, others=others, fluent=fluent)
            making.again = ended + pause
            if missing >= size:  # of less it is not known how long a whole one takes
                making.slice = following
            if run.done or self._held(scene, slot, ids) == len(ids):
                return slot

    async def _catch_up(self, scene: Scene, making: Making, run: Run, slot: Slot, *, apart: Apart) -> Slot:
        """Reads what the answer says, until little of it is missing; all of it, once it is whole."""
        while not run.done and (said := run.said):
            least = 1 if run.whole else FOLLOW
            ids = await self._ids(scene, making, said)
            if len(ids) - self._held(scene, slot, ids) < least:
                break
            slot = await self._read(scene, making, run, ids, apart=apart)
        return slot

    async def _follow(self, scene: Scene, making: Making, run: Run) -> None:
        """Keeps up with the answer. Its last words are read though it is stored meanwhile: they are few."""
        read, slot = 0, scene.engine.queue.home(scene.session)
        while slot is not None and not run.whole:
            if (length := len(run.said)) - read >= FOLLOW * LETTERS:
                read = length
                await self._catch_up(scene, making, run, slot, apart="no")
            await asyncio.sleep(LOOK)
            slot = scene.engine.queue.home(scene.session)  # None: somebody needed it more
        if slot is not None and (said := run.said):
            await self._read(scene, making, run, await self._ids(scene, making, said), apart="no")

    def _held(self, scene: Scene, slot: Slot, ids: list[int]) -> int:
        return reusable(slot.ids, ids, rollback=scene.engine.info.rollback)
