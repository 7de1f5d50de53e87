"""What a model is asked beside its conversation, in idle time: what to remember of older turns, and a title.

It is asked right after the live prompt, all of which is cached, and what it answers enters no conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing

from rallychat.answering import FALLBACK, ends_of
from rallychat.catalog import Family, Model, Sampling
from rallychat.compacting import Compacting, Scene
from rallychat.context.types import Compaction, Memory, Refused
from rallychat.engines.protocol import CompletionRequest, Done, Tokens
from rallychat.messages import Message
from rallychat.parsing import AnswerParser
from rallychat.pool import Apart, Crowded, Priority
from rallychat.recent import Recent
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.texts import title_of
from rallychat.titles import TITLE_PROMPT, TITLE_TOKENS, checked_title

log = logging.getLogger(__name__)

NAMED = 1024
"""Conversations of which it is remembered that a title was asked for."""


class Asides:
    """The questions of idle time. Raises as the engine does: `Preempted` where people come first."""

    def __init__(
        self,
        settings: Settings,
        store: ConversationStore,
        compacting: Compacting,
        *,
        family: Callable[[Model], Family],
        summaries: Callable[[Model], Sampling],
    ) -> None:
        self._settings = settings
        self._store = store
        self._compacting = compacting
        self._family = family
        self._summaries = summaries
        self._named: Recent[str, None] = Recent(NAMED)

    async def memory(self, scene: Scene, due: Compaction) -> Memory:
        """What the model writes, asked right after the live prompt; what rules write, where that is no good."""
        sampling = self._summaries(scene.model)
        try:
            said, ended = await self._asked(scene, due.ask, due.max_tokens, Priority.COMPACTION, sampling)
        except Crowded:
            return due.rules
        found = due.check(said, ended)
        if isinstance(found, Refused):
            log.info("the memory of conversation %s is made by rules: %s", scene.session, found.reason)
            return due.rules
        return found

    async def title(self, scene: Scene) -> None:
        """A title instead of the first message's beginning, unless a person gave one."""
        conversation = scene.conversation
        wanted = self._settings.titles and scene.model.titles
        if not wanted or not conversation.listed or conversation.id in self._named:
            return
        path = await self._store.path(conversation.id)
        said = next((row.text for row in path if row.role == "user"), "")
        if len(path) > 4 or not said or conversation.title != title_of(said):
            return
        text, _ = await self._asked(
            scene, TITLE_PROMPT, TITLE_TOKENS, Priority.TITLES, Sampling(temperature=0.0)
        )
        self._named[conversation.id] = None
        title = checked_title(text, said=" ".join(row.text for row in path))
        if title and (await self._store.get(conversation.id)).title == conversation.title:
            await self._store.update(conversation.id, title=title)

    async def _asked(
        self, scene: Scene, ask: str, max_tokens: int, priority: Priority, sampling: Sampling
    ) -> tuple[str, bool]:
        """What the model says to `ask` after the newest answer, and whether it came to an end.

        An engine that cannot drop the tail of a cache is asked in another slot, or not at all.
        """
        ids = (await self._compacting.ahead(scene, ask=ask)).ids
        engine, family = scene.engine, self._family(scene.model)
        given = sampling.over(FALLBACK).as_dict() | {
            "max_tokens": min(max_tokens, sampling.max_tokens or max_tokens, engine.info.window - len(ids)),
            "stop": [*family.stop, *(sampling.stop or ())],
            "stop_token_ids": await ends_of(family, engine.client),
        }
        request = CompletionRequest(model=scene.model.adapter or engine.spec.model, prompt=ids, **given)
        parser, ended = AnswerParser(family.reasoning), False
        apart: Apart = "no" if engine.info.rollback else "only"
        async with scene.slot(ids, priority, apart=apart) as slot:
            async with self._compacting.counted(scene), aclosing(engine.generate(request, slot)) as events:
                await engine.warm(ids[:-1], slot, adapter=scene.model.adapter)
                async for event in events:
                    if isinstance(event, Tokens):
                        parser.feed(event.text)
                    elif isinstance(event, Done):
                        ended = event.reason == "stop"
        parser.finish()
        return Message("assistant", parser.parts).text, ended
