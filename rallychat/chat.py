"""ChatService: the product without a face. Web, API and terminal call this; a turn reads like a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from rallychat import templates
from rallychat.cards import Inspection, inspection
from rallychat.catalog import ANY, Catalog, Model, Sampling, starting
from rallychat.context.strategies import names
from rallychat.errors import Conflict, InvalidRequest, NotFound, SettingsError
from rallychat.following import follow, is_made
from rallychat.idle import Idle, Voices
from rallychat.messages import Finished, Message
from rallychat.parsing import AnswerParser
from rallychat.planning import Plan, leading_system
from rallychat.pool import Engine, Priority
from rallychat.retention import emptying_trash
from rallychat.runs import Emit, End, Run
from rallychat.settings import Settings
from rallychat.sources import resolve, weights_path
from rallychat.stateless import Stateless, default_system
from rallychat.store import Conversation, ConversationStore, StoredMessage
from rallychat.texts import checked, title_of
from rallychat.unset import UNSET, Unset
from rallychat.wishes import AS_EVER, Wish


class ChatService(Stateless):
    """Conversations with open models. Made by `open`, which frees everything at its end."""

    def __init__(self, settings: Settings, catalog: Catalog, store: ConversationStore) -> None:
        super().__init__(settings, catalog, store)
        voices = Voices(
            resolve=self.resolve,
            family=lambda model: self.catalog.family(model),
            summaries=self.summary_sampling,
            max_tokens=self._max_tokens,
            compacted=self.metrics.compacted,
            growing=self.runs.of_conversation,
        )
        self.idle = Idle(settings, store, self.pool, self.contexts, self._latencies, voices)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings | None = None) -> AsyncIterator[ChatService]:
        """The service, until the block ends: then running answers are stored as interrupted and engines freed.

        Raises:
            SettingsError, StoreError: the settings, the catalog or the database cannot be used.
        """
        settings = settings or Settings.load()
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(ConversationStore.open(settings))
            begin = await asyncio.to_thread(begin_with, settings)
            service = cls(begin.settings, begin.catalog, store)
            service.notes = begin.notes
            stack.push_async_callback(service.aclose)
            tidy = emptying_trash(store, days=settings.trash_days, response_days=settings.response_days)
            await stack.enter_async_context(tidy)
            yield service

    async def aclose(self) -> None:
        """Ends what goes on; running answers are stored as interrupted."""
        await self.idle.aclose()
        await self.runs.aclose()
        await super().aclose()

    # --- turns of a conversation --------------------------------------------------------------------------

    async def turn(
        self,
        conversation_id: str,
        text: str,
        *,
        parent_id: str | Unset | None = UNSET,
        model: str | None = None,
        sampling: Sampling = ANY,
        wish: Wish = AS_EVER,
        key: str | None = None,
    ) -> Run:
        """Says `text` in a conversation. The message is stored when this returns; the answer grows in the run.

        Args:
            parent_id: the message it follows; the conversation's newest if not given, None to start a new root.
            wish: how the context of this answer is kept.
            key: the idempotency key that leads to the answer from now on; so in all that begins one.

        Raises:
            NotFound: no such conversation or model. Conflict: it is still answering. InvalidRequest: no text.
        """
        user = Message.of("user", checked(text))
        conversation = await self.free_conversation(conversation_id)
        parent = conversation.tip_id if parent_id is UNSET else parent_id
        title = "" if conversation.title else title_of(text)
        return await self._answer(
            conversation, parent, user, title=title, model=model, sampling=sampling, wish=wish, key=key
        )

    async def regenerate(
        self, message_id: str, *, model: str | None = None, sampling: Sampling = ANY, key: str | None = None
    ) -> Run:
        """Another answer beside `message_id` (an answer, or a user's message that has none)."""
        row = await self.store.message(message_id)
        conversation = await self.free_conversation(row.conversation_id)
        parent = row.parent_id if row.role == "assistant" else row.id
        if parent is None:
            raise InvalidRequest(
                "This answer follows no message, so it cannot be made again.", param="message_id"
            )
        return await self._answer(conversation, parent, None, model=model, sampling=sampling, key=key)

    async def edit(
        self,
        message_id: str,
        text: str,
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        key: str | None = None,
    ) -> Run:
        """Says something else in place of a user's message. What was there stays as another branch."""
        row = await self.store.message(message_id)
        if row.role != "user":
            raise InvalidRequest("Only your own messages can be edited.", param="message_id")
        return await self.turn(
            row.conversation_id, text, parent_id=row.parent_id, model=model, sampling=sampling, key=key
        )

    async def continue_answer(
        self, message_id: str, *, sampling: Sampling = ANY, key: str | None = None
    ) -> Run:
        """Goes on where an answer ended. A different model than the answer's own is not used."""
        row = await self.store.message(message_id)
        if row.role != "assistant":
            raise InvalidRequest("Only answers can be continued.", param="message_id")
        if row.finish_reason == "stop":
            raise Conflict("This answer is complete.", hint="ask for more in a message of your own")
        conversation = await self.free_conversation(row.conversation_id)
        model = self.talked_to(row.model or conversation.model)
        answer = await self.store.answers.resume(row.id, alone=True, key=key)
        return await self.run_answer(conversation, answer, None, model, sampling)

    async def delete(self, conversation_id: str, *, forever: bool = False) -> None:
        """Stops what is being answered in a conversation and puts it into the trash; no cache of it stays.

        Args:
            forever: it is deleted for good instead, from the trash too.

        Raises:
            NotFound: there is no such conversation, or it is in the trash and is not to go for good.
        """
        try:
            run = await self.answering(await self.store.get(conversation_id))
        except NotFound:
            if not forever:
                raise
            run = None  # in the trash nothing is answered
        if run is not None:
            await run.stop()
        library = self.store.library
        await (library.erase(conversation_id) if forever else library.discard(conversation_id))
        self.idle.leave(conversation_id)
        self.pool.forget(session=conversation_id)

    async def erase_user(self, user_id: str) -> None:
        """Ends a user's answers, and deletes them with everything of theirs, for good.

        Raises:
            NotFound: there is no such user. Conflict: others would be left without an admin.
        """
        await self.runs.stop_all_of(user_id)
        await self.accounts.erase(user_id)
        self.pool.forget(user=user_id)

    async def stop(self, run_id: str) -> End:
        """Stops one answer, within one step of its engine. What had arrived is kept."""
        return await self.runs.get(run_id).stop()

    async def free_conversation(self, conversation_id: str, *, admitted: bool = False) -> Conversation:
        """A conversation that can be answered in; `admitted`: whether who asks may begin is looked at elsewhere.

        Raises:
            Conflict: it is answering. Stopping, Limited: see `admit`.
        """
        if admitted:
            self.runs.admit()
        else:
            await self.admit()
        conversation = await self.store.get(conversation_id)
        run = await self.answering(conversation)
        if run is not None and (run.made_here or await is_made(self.store, run.message_id)):
            raise Conflict("This conversation is still answering.", hint="stop it or wait for its end")
        return conversation

    async def admit(self) -> None:
        """Call before anything of a new answer is stored.

        Raises:
            Stopping: the server is being stopped. Limited: whoever asks has had what they may take.
        """
        self.runs.admit()
        await self.allowances.take()

    async def answering(self, conversation: Conversation) -> Run | None:
        """The answer that is growing in a conversation, be it made here or by another process."""
        if (run := self.runs.of_conversation(conversation.id)) is not None or conversation.answering is None:
            return run
        return await self.follow(conversation.answering, conversation_id=conversation.id)

    async def follow(self, message_id: str, *, conversation_id: str = "") -> Run | None:
        """The run that is making an answer, here or in another process; None if nobody is."""
        if (run := self.runs.of_message(message_id)) is not None:
            return run
        found = await follow(self.store, message_id, conversation_id=conversation_id)
        if found is None:
            return None
        if (run := self.runs.of_message(message_id)) is not None:  # somebody else was quicker
            await found.stop("interrupted")
            return run
        return self.runs.start(found)

    def _max_tokens(self, conversation: Conversation) -> int | None:
        return self.sampling(self.resolve(conversation.model), conversation.sampling).max_tokens

    async def open_conversation(self, conversation_id: str) -> Conversation:
        """A conversation somebody looks at: its next prompt is warmed, for they are likely to say something."""
        conversation = await self.store.get(conversation_id)
        self.idle.opened(conversation_id)
        return conversation

    async def _answer(
        self,
        conversation: Conversation,
        parent_id: str | None,
        user: Message | None,
        *,
        title: str = "",
        model: str | None,
        sampling: Sampling,
        wish: Wish = AS_EVER,
        key: str | None,
    ) -> Run:
        chosen = self.talked_to(model or conversation.model)
        said, answer = await self.store.answers.begin(
            conversation.id, parent_id=parent_id, user=user, model=chosen.id, title=title, alone=True, key=key
        )
        return await self.run_answer(conversation, answer, said, chosen, sampling, wish=wish)

    async def run_answer(
        self,
        conversation: Conversation,
        answer: StoredMessage,
        said: StoredMessage | None,
        model: Model,
        sampling: Sampling,
        *,
        wish: Wish = AS_EVER,
        priority: Priority = Priority.CHAT,
        aside: bool = False,
        patience: float | None = None,
    ) -> Run:
        """Makes a stored answer that is marked as running.

        Args:
            aside: the conversation does not wait for it.
            patience: seconds within which its turn must come.
        """
        family = self.catalog.family(model)
        chosen = self.sampling(model, sampling.over(conversation.sampling))
        growth = self._recorder.open(answer, AnswerParser(family.reasoning, resume=answer.parts))
        growth.give_up_after(patience)

        async def plan(engine: Engine) -> Plan:
            return await self.contexts.plan(
                conversation,
                answer.id if answer.parts else answer.parent_id,
                model=model,
                engine=engine,
                max_tokens=chosen.max_tokens,
                wish=wish,
            )

        async def produce(emit: Emit) -> Finished:
            tell = self.idle.watching(conversation.id, self._recorder.telling(answer, emit))
            return await self._produce(growth, model, chosen, plan, conversation.id, tell, priority=priority)

        self.idle.leave(conversation.id)
        self.idle.asked(conversation, model, chosen.max_tokens, wish)
        run = self.runs.start(
            Run(
                produce,
                partial(self._recorder.conclude, growth, answer),
                conversation_id="" if aside else conversation.id,
                message_id=answer.id,
                user_message_id=said.id if said else answer.parent_id,
                before=answer.parts,
            )
        )
        self.allowances.began()
        run.on_end(lambda _: self.idle.answered(conversation.id))
        return run

    async def inspect(self, conversation_id: str) -> Inspection:
        """What the model saw for the newest answer of the current branch."""
        conversation = await self.store.get(conversation_id)
        path = await self.store.path(conversation_id)
        answered = (row.model for row in reversed(path) if row.model and self.knows(row.model))
        model = self.resolve(next(answered, None) or conversation.model)
        family = self.catalog.family(model)
        template = await templates.of_model(model, family, weights_path(model, self.settings), self.pool)
        system, path = leading_system(conversation.system, path)
        memories = await self.contexts.memories(conversation_id)
        return inspection(model, system or default_system(model, family), path, template, memories)


def begin_with(settings: Settings) -> starting.Start:
    """What a service of these settings begins with. May ask the hub about a model that the catalog does not have."""
    catalog = Catalog.load(settings)
    _check_strategies(settings, catalog)

    def find(name: str, base: str | None) -> Model:
        return resolve(name, catalog, settings, family=settings.family, base=base)

    return starting.start(settings, catalog, find)


def _check_strategies(settings: Settings, catalog: Catalog) -> None:
    """Raises SettingsError where a model's or a family's file names a strategy that is none."""
    said = [("models", model.id.partition(":")[0], model.context) for model in catalog.models.values()]
    said += [("families", family.id, family.context) for family in catalog.families.values()]
    for kind, name, context in said:
        if context.strategy not in (None, *names()):
            file = settings.catalog_dir / kind / f"{name}.toml"
            message = f"{file}: key 'context.strategy' names '{context.strategy}', which is not a strategy."
            raise SettingsError(message, hint=f"there are {', '.join(names())}")
