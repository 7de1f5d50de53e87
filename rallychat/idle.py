"""What happens after an answer: the next prompt is warmed, older turns become memory, a title is found.

All of it is background work of the pool: it makes way for people within one engine step and is tried again when
they are done. Nobody waits for it, and nothing of it is stored but what is finished.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from rallychat.answering import FALLBACK, ends_of
from rallychat.catalog import Family, Model, Sampling
from rallychat.context.types import Compaction, Memory, Refused
from rallychat.contexts import Contexts
from rallychat.engines.protocol import CompletionRequest, Done, Tokens
from rallychat.engines.slots import reusable, shared_prefix
from rallychat.errors import RallyChatError
from rallychat.latency import Latencies
from rallychat.messages import Message
from rallychat.parsing import AnswerParser
from rallychat.pool import Apart, Crowded, Engine, Pool, Preempted, Priority
from rallychat.settings import Settings
from rallychat.store import Conversation, ConversationStore
from rallychat.texts import title_of
from rallychat.titles import TITLE_PROMPT, TITLE_TOKENS, checked_title

log = logging.getLogger(__name__)

REST = 0.3
"""Seconds after an answer before anything begins: who goes on at once is not disturbed."""
RECENT = 64
"""Conversations remembered as open, to be warmed again after an engine's restart."""


@dataclass(frozen=True, slots=True)
class Voices:
    """What the service knows of models."""

    resolve: Callable[[str | None], Model]
    family: Callable[[Model], Family]
    summaries: Callable[[Model], Sampling]
    max_tokens: Callable[[Conversation], int | None]
    """Of its next answer."""
    answering: Callable[[str], bool]
    """An answer is growing in this conversation."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """A conversation whose newest answer is there, and the loaded engine that will answer next."""

    conversation: Conversation
    model: Model
    engine: Engine
    max_tokens: int | None

    @property
    def session(self) -> str:
        return self.conversation.id


class Idle:
    """The work of idle time, a task per conversation."""

    def __init__(
        self,
        settings: Settings,
        store: ConversationStore,
        pool: Pool,
        contexts: Contexts,
        latencies: Latencies,
        voices: Voices,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._contexts = contexts
        self._latencies = latencies
        self._voices = voices
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._written: dict[str, tuple[Compaction, Memory]] = {}
        self._named: set[str] = set()
        self._closed = False
        pool.came_back = self._came_back

    def leave(self, conversation_id: str) -> None:
        """Somebody says something in this conversation: what was prepared for it is as it is."""
        task = self._tasks.pop(conversation_id, None)
        if task is not None:
            task.cancel()

    def answered(self, conversation_id: str) -> None:
        """An answer has ended: there may be time."""
        self.leave(conversation_id)
        self._start(conversation_id, rest=REST)

    def opened(self, conversation_id: str) -> None:
        """Somebody looks at this conversation, and is likely to say something."""
        for engine in self._pool.engines():
            engine.queue.touch(conversation_id)
        if conversation_id not in self._tasks:
            self._start(conversation_id)

    async def settled(self) -> None:
        """Waits until there is nothing left to do."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def aclose(self) -> None:
        """Stops everything; what was not finished begins anew another time."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _came_back(self, engine: Engine) -> None:
        mine = [one for one, model in self._recent.items() if model == engine.spec.model]
        for conversation_id in reversed(mine[-engine.spec.slots :]):
            if conversation_id not in self._tasks:
                self._start(conversation_id)

    def _start(self, conversation_id: str, *, rest: float = 0.0) -> None:
        if self._closed:
            return
        task = asyncio.create_task(self._work(conversation_id, rest), name=f"idle {conversation_id}")
        self._tasks[conversation_id] = task

        def ended(done: asyncio.Task[None]) -> None:
            if self._tasks.get(conversation_id) is done:
                del self._tasks[conversation_id]

        task.add_done_callback(ended)

    # --- one conversation ---------------------------------------------------------------------------------

    async def _work(self, conversation_id: str, rest: float) -> None:
        await asyncio.sleep(rest)
        for step in (self._warm, self._compact, self._title, self._measure):
            try:
                if not await self._tried(step, conversation_id):
                    return
            except RallyChatError as exc:  # deleted, unloaded, or the engine died: another time
                log.info("nothing was prepared for conversation %s: %s", conversation_id, exc)
                return
            except Exception:
                log.exception("preparing conversation %s failed", conversation_id)
                return

    async def _tried(self, step: Callable[[_Scene], Awaitable[None]], conversation_id: str) -> bool:
        """The step, as often as it has to make way; False where there is nothing to prepare for."""
        while True:
            scene = await self._scene(conversation_id)
            if scene is None:
                return False
            try:
                await step(scene)
            except Preempted:
                continue
            except Crowded:
                pass  # every cache is worth more than this
            return True

    async def _scene(self, conversation_id: str) -> _Scene | None:
        conversation = await self._store.get(conversation_id)
        if conversation.tip_id is None or self._voices.answering(conversation_id):
            return None
        tip = await self._store.message(conversation.tip_id)
        model = self._voices.resolve(conversation.model)
        engine = self._pool.find(model.id)
        if (tip.role, tip.status) != ("assistant", "complete") or engine is None or engine.state != "loaded":
            return None
        self._latencies.opened(model.id, engine)
        self._recent[conversation_id] = model.engine_id
        self._recent.move_to_end(conversation_id)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        if not engine.info.slot_affinity:
            return None
        return _Scene(conversation, model, engine, self._voices.max_tokens(conversation))

    async def _prefix(self, scene: _Scene, memory: Memory | None = None) -> list[int]:
        """What the next prompt begins with, whatever is said: what two different questions have in common."""
        one, other = await self._ahead(scene, "A", memory), await self._ahead(scene, "9", memory)
        return one[: shared_prefix(one, other)]

    async def _ahead(self, scene: _Scene, ask: str, memory: Memory | None = None) -> list[int]:
        plan = await self._contexts.ahead(
            scene.conversation,
            model=scene.model,
            engine=scene.engine,
            max_tokens=scene.max_tokens,
            memory=memory,
            ask=ask,
        )
        return plan.ids

    # --- steps --------------------------------------------------------------------------------------------

    async def _warm(self, scene: _Scene) -> None:
        """The template ends a turn with tokens that the model did not say; an evicted cache is missing whole."""
        ids = await self._prefix(scene)
        home, rollback = scene.engine.queue.home(scene.session), scene.engine.info.rollback
        if home is not None and reusable(home.ids, ids, rollback=rollback) == len(ids):
            return
        async with scene.engine.slot(ids, priority=Priority.WARMING, session=scene.session) as slot:
            async with self._counted(scene):
                await scene.engine.warm(ids, slot, adapter=scene.model.adapter)

    async def _compact(self, scene: _Scene) -> None:
        """Older turns become memory. The prompt is swapped when the new one is warm; until then the old one holds.

        Where no other slot can be had without harm, the conversation's own is used and the swap comes first.
        """
        due = await self._due(scene)
        if due is None:
            return
        memory = await self._memory(scene, due)
        ids = await self._prefix(scene, memory)
        queue = scene.engine.queue
        home = queue.home(scene.session)
        asked = scene.engine.slot(ids, priority=Priority.COMPACTION, session=scene.session, apart="rather")
        async with asked as slot:
            swapped = slot is home
            if swapped and not await self._swapped(scene, due, memory):
                return
            async with self._counted(scene):
                await scene.engine.warm(ids, slot, adapter=scene.model.adapter)
            if swapped or await self._swapped(scene, due, memory):
                queue.settle(scene.session, slot)

    async def _due(self, scene: _Scene) -> Compaction | None:
        return await self._contexts.due(
            scene.conversation, model=scene.model, engine=scene.engine, max_tokens=scene.max_tokens
        )

    async def _swapped(self, scene: _Scene, due: Compaction, memory: Memory) -> bool:
        """Commits the memory, unless the conversation has changed under it: then it is dropped."""
        self._written.pop(scene.session, None)
        now = await self._scene(scene.session)
        again = await self._due(now) if now is not None else None
        if again is None or (again.until, again.rules.text) != (due.until, due.rules.text):
            log.info("conversation %s has changed: its new memory is dropped", scene.session)
            return False
        await self._contexts.commit(scene.session, memory)
        return True

    async def _memory(self, scene: _Scene, due: Compaction) -> Memory:
        """What the model writes, asked right after the live prompt; what rules write, where that is no good."""
        if not due.ask:
            return due.rules
        if (known := self._written.get(scene.session)) is not None:
            before, memory = known
            if (before.until, before.rules.text) == (due.until, due.rules.text):
                return memory
        sampling = self._voices.summaries(scene.model)
        try:
            said, ended = await self._asked(scene, due.ask, due.max_tokens, Priority.COMPACTION, sampling)
        except Crowded:
            return due.rules
        found = due.check(said, ended)
        if isinstance(found, Refused):
            log.info("the memory of conversation %s is made by rules: %s", scene.session, found.reason)
            return due.rules
        self._written[scene.session] = (due, found)
        return found

    async def _title(self, scene: _Scene) -> None:
        """A title instead of the first message's beginning, unless a person gave one."""
        conversation = scene.conversation
        if not self._settings.titles or not conversation.listed or conversation.id in self._named:
            return
        path = await self._store.path(conversation.id)
        said = next((row.text for row in path if row.role == "user"), "")
        if len(path) > 4 or not said or conversation.title != title_of(said):
            return
        text, _ = await self._asked(
            scene, TITLE_PROMPT, TITLE_TOKENS, Priority.TITLES, Sampling(temperature=0.0)
        )
        self._named.add(conversation.id)
        title = checked_title(text, said=" ".join(row.text for row in path))
        if title and (await self._store.get(conversation.id)).title == conversation.title:
            await self._store.update(conversation.id, title=title)

    async def _measure(self, scene: _Scene) -> None:
        """How fast this machine is with long prompts, once per model."""
        await self._latencies.measure(scene.engine)

    async def _asked(
        self, scene: _Scene, ask: str, max_tokens: int, priority: Priority, sampling: Sampling
    ) -> tuple[str, bool]:
        """What the model says to `ask` after the newest answer, and whether it came to an end.

        An engine that cannot drop the tail of a cache is asked in another slot, or not at all.
        """
        ids = await self._ahead(scene, ask)
        engine, family = scene.engine, self._voices.family(scene.model)
        given = sampling.over(FALLBACK).as_dict() | {
            "max_tokens": min(max_tokens, sampling.max_tokens or max_tokens, engine.info.window - len(ids)),
            "stop": [*family.stop, *(sampling.stop or ())],
            "stop_token_ids": await ends_of(family, engine.client),
        }
        request = CompletionRequest(model=scene.model.adapter or engine.spec.model, prompt=ids, **given)
        parser, ended = AnswerParser(family.reasoning), False
        apart: Apart = "no" if engine.info.rollback else "only"
        async with engine.slot(ids, priority=priority, session=scene.session, apart=apart) as slot:
            async with self._counted(scene), aclosing(engine.generate(request, slot)) as events:
                await engine.warm(ids[:-1], slot, adapter=scene.model.adapter)
                async for event in events:
                    if isinstance(event, Tokens):
                        parser.feed(event.text)
                    elif isinstance(event, Done):
                        ended = event.reason == "stop"
        parser.finish()
        return Message("assistant", parser.parts).text, ended

    @asynccontextmanager
    async def _counted(self, scene: _Scene) -> AsyncIterator[None]:
        """The time it takes is told in the conversation's next report."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._contexts.spent(scene.session, (time.monotonic() - began) * 1000)
