"""Making room in a conversation: which memory it will have, from the moment that is due until it is swapped in."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Unpack

from rallychat.basis import Basis
from rallychat.catalog import Model
from rallychat.context.types import Compaction, Memory
from rallychat.contexts import Contexts
from rallychat.errors import Conflict
from rallychat.planning import Plan
from rallychat.pool import Engine, How, Priority, Slot
from rallychat.recent import Recent
from rallychat.store import Conversation
from rallychat.wishes import AS_EVER, Wish

log = logging.getLogger(__name__)

KEPT = 256
"""Conversations in which room may be in the making at the same time."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A conversation, and the loaded engine that will answer next; what was wished for likely will be again."""

    conversation: Conversation
    model: Model
    engine: Engine
    max_tokens: int | None
    since: float
    """When somebody was last seen in it, by the monotonic clock: caches used later are worth more."""
    wish: Wish = AS_EVER

    @property
    def session(self) -> str:
        """Names it to the engine's slots."""
        return self.conversation.id

    def slot(
        self, ids: list[int], priority: Priority, /, **how: Unpack[How]
    ) -> AbstractAsyncContextManager[Slot]:
        """A slot for a prompt of this conversation; see `SlotQueue.slot`."""
        mine: How = {**how, "priority": priority, "session": self.session, "since": self.since}
        return self.engine.slot(ids, **mine)


@dataclass(slots=True)
class Making:
    """Room that is being made. `memory` is None until it is written; `basis` is what it must not have left."""

    due: Compaction
    basis: Basis
    memory: Memory | None = None
    slice: int = 16
    """Tokens read at a time beside an answer, at first."""
    again: float = 0.0
    """When the next of them may be read, by the monotonic clock."""
    asked: int = 0
    """Questions that came meanwhile: their prompts were without it."""


class Compacting:
    """What is in the making, conversation by conversation. Begun once, it goes on wherever there is time for it.

    Args:
        compacted: hears the model's id whenever older turns became a memory.
    """

    def __init__(self, contexts: Contexts, compacted: Callable[[str], None]) -> None:
        self._contexts = contexts
        self._compacted = compacted
        self._makings: Recent[str, Making] = Recent(KEPT)
        self._lasted: Recent[str, int] = Recent(KEPT)

    def asked(self, session: str) -> None:
        """A question came in this conversation."""
        if (making := self._makings.get(session)) is not None:
            making.asked += 1

    def lasts(self, session: str) -> int | None:
        """Questions that came while room was made there lately, and likely will the next time; None: not known."""
        return self._lasted.get(session)

    async def begun(self, scene: Scene, *, tip: str | None = None, lead: int = 0) -> Making | None:
        """What is in the making; else what is due once `tip` (the newest message if None) is answered.

        Args:
            lead: see `Contexts.due`.
        """
        known = self._makings.get(scene.session)
        if known is not None and known.memory is not None and await self._stands(scene, known):
            return known
        # Where nothing is written yet the model is to read what came since.
        self._makings.pop(scene.session, None)
        found = await self._contexts.due(
            scene.conversation,
            model=scene.model,
            engine=scene.engine,
            max_tokens=scene.max_tokens,
            wish=scene.wish,
            tip=tip,
            lead=lead,
        )
        if found is None:
            return None
        due, basis = found
        making = self._makings[scene.session] = Making(due, basis, None if due.ask else due.rules)
        if known is not None and known.memory is None:
            making.asked = known.asked
        return making

    async def ahead(
        self, scene: Scene, *, ask: str = "", memory: Memory | None = None, growing: str | None = None
    ) -> Plan:
        """What the next prompt will begin with; see `Contexts.ahead`."""
        return await self._contexts.ahead(
            scene.conversation,
            model=scene.model,
            engine=scene.engine,
            max_tokens=scene.max_tokens,
            wish=scene.wish,
            memory=memory,
            ask=ask,
            growing=growing,
        )

    async def swap(self, scene: Scene, making: Making) -> bool:
        """Commits the memory, unless the conversation has changed under it: then it is dropped."""
        self._makings.pop(scene.session, None)
        if making.memory is None or not await self._stands(scene, making):
            log.info("conversation %s has changed: its new memory is dropped", scene.session)
            return False
        try:
            await self._contexts.commit(scene.session, making.memory, known=making.basis.versions)
        except Conflict:
            log.info("conversation %s has another memory by now: the new one is dropped", scene.session)
            return False
        lasted = self._lasted.get(scene.session, 0)
        self._lasted[scene.session] = max(making.asked, lasted - 1)  # once quick may be by chance
        self._compacted(scene.model.id)
        return True

    async def _stands(self, scene: Scene, making: Making) -> bool:
        basis = await self._contexts.basis(
            scene.session,
            making.basis.turns[-1][0],
            model=scene.model,
            max_tokens=scene.max_tokens,
            wish=scene.wish,
        )
        return basis == making.basis

    @asynccontextmanager
    async def counted(self, scene: Scene) -> AsyncIterator[None]:
        """The time it takes is told in the conversation's next report."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._contexts.spent(scene.session, (time.monotonic() - began) * 1000)
