"""What happens after an answer: the next prompt is warmed, older turns become memory, a title is found.

All of it is background work of the pool: it makes way for people within one engine step and is tried again when
they are done. Nobody waits for it, and nothing of it is stored but what is finished.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from rallychat.asides import Asides
from rallychat.catalog import Family, Model, Sampling
from rallychat.compacting import Compacting, Scene
from rallychat.context.types import Memory
from rallychat.contexts import Contexts
from rallychat.engines.slots import reusable, shared_prefix
from rallychat.errors import RallyChatError
from rallychat.identity import acting_as, current
from rallychat.latency import Latencies
from rallychat.messages import ContextReport, Event, ReasoningDelta, Started, TextDelta
from rallychat.pool import Crowded, Engine, Pool, Preempted, Priority
from rallychat.pool.offload import NEARLY
from rallychat.recent import Recent
from rallychat.riding import Riding, lead_of, near
from rallychat.runs import Emit, Run
from rallychat.settings import Settings
from rallychat.store import Conversation, ConversationStore
from rallychat.wishes import AS_EVER, Habit, Wish

log = logging.getLogger(__name__)

REST = 0.3
"""Seconds after an answer before anything begins: who goes on at once is not disturbed."""
ASKED = 1024
"""Conversations of which it is remembered how they were asked until that is stored."""
RECENT = 64
"""Conversations remembered as open, to be warmed again after an engine's restart."""
WAITING = 128
"""Conversations whose work waits for idle time. Of more, the one that came first is left until it is opened or goes on:
at a service that never rests it would wait, and be kept in memory, for ever."""


@dataclass(frozen=True, slots=True)
class Voices:
    """What the service knows of models."""

    resolve: Callable[[str | None], Model]
    family: Callable[[Model], Family]
    summaries: Callable[[Model], Sampling]
    max_tokens: Callable[[Conversation], int | None]
    """Of its next answer."""
    compacted: Callable[[str], None]
    """Older turns became a memory, for the model of this id."""
    growing: Callable[[str], Run | None]
    """The growing answer of a conversation."""


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
        self._latencies = latencies
        self._voices = voices
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._recent: Recent[str, tuple[str, str]] = Recent(RECENT)
        self._compacting = Compacting(contexts, voices.compacted)
        self._asides = Asides(
            settings, store, self._compacting, family=voices.family, summaries=voices.summaries
        )
        self._riding = Riding(store, self._compacting, voices.growing)
        self._habits: Recent[str, Habit] = Recent(ASKED)  # those that are not stored yet
        self._hurried: Recent[str, None] = Recent(ASKED)  # those whose idle time was too short for its work
        self._closed = False
        pool.loaded = self._loaded

    def leave(self, conversation_id: str) -> None:
        """Somebody says something in this conversation: what was prepared for it is as it is."""
        task = self._tasks.pop(conversation_id, None)
        if task is not None:
            task.cancel()

    def asked(
        self, conversation: Conversation, model: Model, max_tokens: int | None, wish: Wish = AS_EVER
    ) -> None:
        """This model, so long an answer and a context so kept are asked for, and likely will be again: the next
        prompt depends on them."""
        self._compacting.asked(conversation.id)
        self._habits[conversation.id] = Habit(model.id, conversation.model, max_tokens, wish)

    def answered(self, conversation_id: str) -> None:
        """An answer has ended: there may be time. What goes on beside it comes to its end first."""
        riding = self._tasks.pop(conversation_id, None)
        self._start(conversation_id, self._work(conversation_id, REST, after=riding), after=riding)

    def watching(self, conversation_id: str, emit: Emit) -> Emit:
        """`emit` of an answer; once that begins to be told, what no idle time came for is done beside it."""
        reports: list[ContextReport] = []
        hurried = conversation_id in self._hurried

        def tell(event: Event) -> None:
            emit(event)
            if isinstance(event, Started) and event.report is not None:
                reports[:] = [event.report] if near(event.report, hurried=hurried) else []
            elif isinstance(event, TextDelta | ReasoningDelta) and reports:
                self._start(conversation_id, self._ride(conversation_id, reports.pop(), hurried=hurried))

        return tell

    def opened(self, conversation_id: str) -> None:
        """Somebody looks at this conversation, and is likely to say something."""
        for engine in self._pool.engines():
            engine.queue.touch(conversation_id)
        if conversation_id not in self._tasks:
            self._start(conversation_id, self._work(conversation_id, 0.0))

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

    def _loaded(self, engine: Engine) -> None:
        """Nobody is answered yet: the time to measure it. After a restart, to warm again what it had."""
        self._start(f"measure {engine.spec.model}", self._first(engine))
        if not engine.restarts:
            return
        mine = [(one, user) for one, (model, user) in self._recent.items() if model == engine.spec.model]
        for conversation_id, user in reversed(mine[-engine.spec.slots :]):
            if conversation_id not in self._tasks:
                self._start(conversation_id, self._work(conversation_id, 0.0), user=user)

    def _start(
        self,
        conversation_id: str,
        work: Coroutine[None, None, None],
        *,
        user: str | None = None,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """Begins the work, in place of what goes on, for the user it is for: who asks now, if none is given.

        What it comes `after` is left when it is, even before it has begun.
        """
        self.leave(conversation_id)
        if self._closed:
            work.close()
            return
        with acting_as(
            user or current().id
        ):  # the task keeps it; what the request was allowed to do is left out
            task = asyncio.create_task(work, name=f"idle {conversation_id}")
        self._tasks[conversation_id] = task
        if len(self._tasks) > WAITING:
            self.leave(next(iter(self._tasks)))

        def ended(done: asyncio.Task[None]) -> None:
            if after is not None:
                after.cancel()
            if self._tasks.get(conversation_id) is done:
                del self._tasks[conversation_id]

        task.add_done_callback(ended)

    # --- one conversation ---------------------------------------------------------------------------------

    async def _work(
        self, conversation_id: str, rest: float, *, after: asyncio.Task[None] | None = None
    ) -> None:
        since = time.monotonic()
        self._hurried[conversation_id] = None
        if after is not None:
            await after
        await self._keep_habit(conversation_id)
        await self._keep_cache(conversation_id)
        await asyncio.sleep(rest)
        for step in (self._warm, self._compact, self._asides.title, self._measure, self._warm):
            try:
                if not await self._tried(step, conversation_id, since):
                    return
            except RallyChatError as exc:  # deleted, unloaded, or the engine died: another time
                log.info("nothing was prepared for conversation %s: %s", conversation_id, exc)
                return
            except Exception:
                log.exception("preparing conversation %s failed", conversation_id)
                return
        self._hurried.pop(conversation_id, None)

    async def _keep_habit(self, conversation_id: str) -> None:
        """Stores how the newest answer was asked for, unless it is known: also after a restart it holds."""
        habit = self._habits.get(conversation_id)
        if habit is None:
            return
        try:
            conversation = await self._store.get(conversation_id)
            asked = None if self._is_usual(conversation, habit) else habit.as_json()
            if asked != conversation.asked:
                await self._store.contexts.keep_asked(conversation_id, asked)
        except RallyChatError as exc:
            log.info("how conversation %s was asked is not kept: %s", conversation_id, exc)
        else:
            self._habits.pop(conversation_id, None)

    async def _keep_cache(self, conversation_id: str) -> None:
        """Where there are more conversations than slots, this one may lose its own at any time."""
        for engine in self._pool.engines():
            try:
                await engine.keep(conversation_id)
            except RallyChatError as exc:
                log.info("the cache of conversation %s is not copied: %s", conversation_id, exc)

    def _is_usual(self, conversation: Conversation, habit: Habit) -> bool:
        usual = (self._voices.resolve(conversation.model).id, self._voices.max_tokens(conversation), AS_EVER)
        return (habit.model, habit.max_tokens, habit.wish) == usual

    async def _ride(self, conversation_id: str, report: ContextReport, *, hurried: bool) -> None:
        """Beside the growing answer."""
        try:
            scene = await self._scene(conversation_id, time.monotonic(), growing=True)
            if scene is not None:
                await self._riding.ride(scene, report, hurried=hurried)
        except Crowded:
            pass  # idle time may come, or room is made at once when the prompt is too long
        except RallyChatError as exc:
            log.info("no room was made beside an answer in conversation %s: %s", conversation_id, exc)
        except Exception:
            log.exception("making room beside an answer in conversation %s failed", conversation_id)

    async def _tried(
        self, step: Callable[[Scene], Awaitable[None]], conversation_id: str, since: float
    ) -> bool:
        """The step, as often as it has to make way; False where there is nothing to prepare for."""
        while True:
            scene = await self._scene(conversation_id, since)
            if scene is None:
                return False
            if scene.engine.queue.people:  # planning, too, takes time from those who are served
                await scene.engine.queue.calm()
                continue
            try:
                await step(scene)
            except Preempted:
                continue
            except Crowded:
                pass  # every cache is worth more than this
            return True

    async def _scene(self, conversation_id: str, since: float, *, growing: bool = False) -> Scene | None:
        """The conversation, seen last at `since`, if its newest answer is there, or is `growing`."""
        conversation = await self._store.get(conversation_id)
        if conversation.tip_id is None or (self._voices.growing(conversation_id) is not None) is not growing:
            return None
        tip = await self._store.message(conversation.tip_id)
        known = self._habits.get(conversation_id) or Habit.stored(conversation.asked)
        again = known if known is not None and known.instead_of == conversation.model else conversation
        model = self._voices.resolve(again.model)
        engine = self._pool.find(model.id)
        expected = ("assistant", "running" if growing else "complete")
        if (tip.role, tip.status) != expected or engine is None or engine.state != "loaded":
            return None
        self._latencies.opened(model.id, engine)
        self._recent[conversation_id] = (model.engine_id, current().id)
        if not engine.info.slot_affinity:
            return None
        most, wish = (
            (known.max_tokens, known.wish) if known else (self._voices.max_tokens(conversation), AS_EVER)
        )
        return Scene(wish.told(conversation), model, engine, most, since, wish)

    async def _prefix(self, scene: Scene, memory: Memory | None = None) -> list[int]:
        """What the next prompt begins with, whatever is said: what two different questions have in common.

        Nothing, where room would have to be made for it: that is what compaction is for.
        """
        one = await self._compacting.ahead(scene, ask="A", memory=memory)
        other = await self._compacting.ahead(scene, ask="9", memory=memory)
        if one.fresh is not None:
            return []
        return one.ids[: shared_prefix(one.ids, other.ids)]

    # --- steps --------------------------------------------------------------------------------------------

    async def _warm(self, scene: Scene) -> None:
        """The template ends a turn with tokens that the model did not say; an evicted cache is missing whole."""
        ids = await self._prefix(scene) if scene.engine.info.extends else []
        if not ids:
            return
        home, rollback = scene.engine.queue.home(scene.session), scene.engine.info.rollback
        kept = scene.engine.offload.of(scene.session)
        if home is not None and reusable(home.ids, ids, rollback=rollback) == len(ids):
            return
        if home is None and len(ids) - reusable(kept, ids, rollback=rollback) < NEARLY:
            return
        async with scene.slot(ids, Priority.WARMING) as slot:
            async with self._compacting.counted(scene):
                await scene.engine.warm(ids, slot, adapter=scene.model.adapter)

    async def _compact(self, scene: Scene) -> None:
        """Older turns become memory. The prompt is swapped when the new one is warm; until then the old one holds.

        Where no other slot can be had without harm, the conversation's own is used and the swap comes first. Where the
        idle time after one answer was not enough for it, it is begun so much earlier the next time.
        """
        making = await self._compacting.begun(scene, lead=await self._lead(scene))
        if making is None:
            return
        if making.memory is None:
            making.memory = await self._asides.memory(scene, making.due)
        ids = await self._prefix(scene, making.memory)
        if not ids:
            return
        queue = scene.engine.queue
        home = queue.home(scene.session)
        try:
            async with scene.slot(ids, Priority.COMPACTION, apart="rather") as slot:
                swapped = slot is home
                if swapped and not await self._compacting.swap(scene, making):
                    return
                async with self._compacting.counted(scene):
                    await scene.engine.warm(ids, slot, adapter=scene.model.adapter)
                if swapped or await self._compacting.swap(scene, making):
                    queue.settle(scene.session, slot)
        except Crowded:
            here = queue.home(scene.session) is not None or scene.engine.offload.of(scene.session)
            if not here:  # its next prompt is read anew in any case: let it be a short one
                await self._compacting.swap(scene, making)

    async def _lead(self, scene: Scene) -> int:
        turns, tip = self._compacting.lasts(scene.session), scene.conversation.tip_id
        if not turns or tip is None:
            return 0
        report = (await self._store.message(tip)).report
        return lead_of(report, turns) if report is not None else 0

    async def _measure(self, scene: Scene) -> None:
        """How fast this machine is with long prompts, once per model. A single slot is warmed again afterwards."""
        await self._latencies.measure(scene.engine)

    async def _first(self, engine: Engine) -> None:
        """The same before the first question, which may come at any time: then it is done after an answer."""
        await asyncio.sleep(REST)
        try:
            await self._latencies.measure(engine)
        except (Preempted, Crowded, RallyChatError) as exc:
            log.info("%s is measured another time: %s", engine.spec.model, type(exc).__name__)
        except Exception:
            log.exception("measuring %s failed", engine.spec.model)
