"""ChatService: the product without a face. Web, API and terminal call this; a turn reads like a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

from rallychat import templates
from rallychat.answering import Growth, generate
from rallychat.cards import Inspection, inspection
from rallychat.catalog import ANY, Catalog, Family, Model, Sampling, starting
from rallychat.contexts import AS_EVER, Asked, Contexts, Wish
from rallychat.errors import Conflict, EngineInterrupted, InvalidRequest
from rallychat.idle import Idle, Voices
from rallychat.latency import Latencies
from rallychat.messages import Event, Failed, Finished, Message, TextDelta
from rallychat.metrics import Metrics
from rallychat.parsing import AnswerParser
from rallychat.planning import Plan, leading_system, plan_ids, plan_messages, plan_text, tokens_of
from rallychat.pool import Engine, Priority
from rallychat.prompts import Rendered
from rallychat.recording import Recorder
from rallychat.runs import Emit, End, Run, Runs
from rallychat.settings import Settings
from rallychat.shelf import Shelf
from rallychat.sources import resolve, weights_path
from rallychat.store import Conversation, ConversationStore, StoredMessage
from rallychat.texts import checked, encodable, title_of
from rallychat.unset import UNSET, Unset

Planner = Callable[[Engine], Awaitable[Plan]]


class ChatService(Shelf):
    """Conversations with open models. Made by `open`, which frees everything at its end."""

    def __init__(self, settings: Settings, catalog: Catalog, store: ConversationStore) -> None:
        super().__init__(settings, catalog)
        self.store = store
        self.notes: tuple[str, ...] = ()
        self.metrics = Metrics(self.pool)
        self._latencies = Latencies(settings)
        self.contexts = Contexts(settings, catalog, store, latency=self._latencies.limit)
        self._recorder = Recorder(store, self.pool)
        self.runs = Runs(self._recorder.save)
        voices = Voices(
            resolve=self.resolve,
            family=lambda model: self.catalog.family(model),
            summaries=self.summary_sampling,
            max_tokens=self._max_tokens,
            answering=lambda conversation_id: self.runs.of_conversation(conversation_id) is not None,
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
    ) -> Run:
        """Says `text` in a conversation. The message is stored when this returns; the answer grows in the run.

        Args:
            parent_id: the message it follows; the conversation's newest if not given, None to start a new root.
            wish: how the context of this answer is kept.

        Raises:
            NotFound: no such conversation or model. Conflict: it is still answering. InvalidRequest: no text.
        """
        user = Message.of("user", checked(text))
        conversation = await self.free_conversation(conversation_id)
        parent = conversation.tip_id if parent_id is UNSET else parent_id
        if not conversation.title:
            await self.store.update(conversation_id, title=title_of(text))
        return await self._answer(conversation, parent, user, model=model, sampling=sampling, wish=wish)

    async def regenerate(self, message_id: str, *, model: str | None = None, sampling: Sampling = ANY) -> Run:
        """Another answer beside `message_id` (an answer, or a user's message that has none)."""
        row = await self.store.message(message_id)
        conversation = await self.free_conversation(row.conversation_id)
        parent = row.parent_id if row.role == "assistant" else row.id
        if parent is None:
            raise InvalidRequest(
                "This answer follows no message, so it cannot be made again.", param="message_id"
            )
        return await self._answer(conversation, parent, None, model=model, sampling=sampling)

    async def edit(
        self, message_id: str, text: str, *, model: str | None = None, sampling: Sampling = ANY
    ) -> Run:
        """Says something else in place of a user's message. What was there stays as another branch."""
        row = await self.store.message(message_id)
        if row.role != "user":
            raise InvalidRequest("Only your own messages can be edited.", param="message_id")
        return await self.turn(
            row.conversation_id, text, parent_id=row.parent_id, model=model, sampling=sampling
        )

    async def continue_answer(self, message_id: str, *, sampling: Sampling = ANY) -> Run:
        """Goes on where an answer ended. A different model than the answer's own is not used."""
        row = await self.store.message(message_id)
        if row.role != "assistant":
            raise InvalidRequest("Only answers can be continued.", param="message_id")
        if row.finish_reason == "stop":
            raise Conflict("This answer is complete.", hint="ask for more in a message of your own")
        conversation = await self.free_conversation(row.conversation_id)
        model = self.resolve(row.model or conversation.model)
        answer = await self.store.resume(row.id)
        return await self.run_answer(conversation, answer, None, model, sampling)

    async def stop(self, run_id: str) -> End:
        """Stops one answer, within one step of its engine. What had arrived is kept."""
        return await self.runs.get(run_id).stop()

    async def free_conversation(self, conversation_id: str) -> Conversation:
        """A conversation that can be answered in. Raises Conflict while it is answering."""
        conversation = await self.store.get(conversation_id)
        if self.runs.of_conversation(conversation_id) is not None:
            raise Conflict("This conversation is still answering.", hint="stop it or wait for its end")
        return conversation

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
        model: str | None,
        sampling: Sampling,
        wish: Wish = AS_EVER,
    ) -> Run:
        chosen = self.resolve(model or conversation.model)
        said, answer = await self.store.begin(
            conversation.id, parent_id=parent_id, user=user, model=chosen.id
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
    ) -> Run:
        """Makes a stored answer that is marked as running; `aside`: the conversation does not wait for it."""
        family = self.catalog.family(model)
        chosen = self.sampling(model, sampling.over(conversation.sampling))
        growth = self._recorder.open(answer, AnswerParser(family.reasoning, resume=answer.parts))

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
            tell = self._recorder.telling(answer, emit)
            return await self._produce(growth, model, chosen, plan, conversation.id, tell, priority=priority)

        self.idle.leave(conversation.id)
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
        run.on_end(lambda _: self.idle.answered(conversation.id))
        return run

    async def _produce(
        self,
        growth: Growth,
        model: Model,
        sampling: Sampling,
        plan: Planner,
        session: str,
        emit: Emit,
        *,
        priority: Priority = Priority.CHAT,
    ) -> Finished:
        with self.metrics.answer(model.id, growth) as outcome:
            engine = await self.pool.open(model, emit)
            self._latencies.opened(model.id, engine)
            end = await generate(
                growth,
                engine=engine,
                plan=lambda: plan(engine),
                family=self.catalog.family(model),
                sampling=sampling,
                emit=emit,
                session=session,
                priority=priority,
                adapter=model.adapter,
            )
            outcome.reason = end.reason
        return end

    # --- stateless ----------------------------------------------------------------------------------------

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        priority: Priority = Priority.CHAT,
        context: Asked | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Answers `messages` without storing anything. Closing the generator stops the answer.

        What does not fit is an error, unless `context` names a strategy. The last event is `Finished` or `Failed`.
        """
        if not messages:
            raise InvalidRequest("There are no messages.", param="messages")
        for message in messages:
            encodable(message.text)
        chosen = self.resolve(model)
        family = self.catalog.family(chosen)
        merged = self.sampling(chosen, sampling)

        async def plan(engine: Engine) -> Plan:
            if context is not None:
                return await self.contexts.plan_unstored(
                    messages, context, model=chosen, engine=engine, max_tokens=sampling.max_tokens
                )
            return await plan_messages(
                _with_default_system(messages, _default_system(chosen, family)),
                template=templates.of_engine(chosen, family, engine.info),
                client=engine.client,
                window=engine.info.window,
                max_tokens=sampling.max_tokens,
            )

        growth = Growth(AnswerParser(family.reasoning))
        async with aclosing(self._stateless(growth, chosen, merged, plan, priority)) as events:
            async for event in events:
                yield event

    async def complete_prompt(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        priority: Priority = Priority.CHAT,
    ) -> AsyncGenerator[Event, None]:
        """Continues a raw prompt, text or token ids, without a template. Closing it stops the answer."""
        chosen = self.resolve(model)
        if isinstance(prompt, str):
            encodable(prompt)

        async def plan(engine: Engine) -> Plan:
            window, limit = engine.info.window, sampling.max_tokens
            if isinstance(prompt, str):
                return await plan_text(prompt, client=engine.client, window=window, max_tokens=limit)
            return plan_ids(prompt, window=window, max_tokens=limit)

        merged = sampling.over(Sampling(stop=())).over(self.sampling(chosen, Sampling()))
        growth = Growth(AnswerParser(None))
        async with aclosing(self._stateless(growth, chosen, merged, plan, priority)) as events:
            async for event in events:
                yield event

    async def _stateless(
        self, growth: Growth, model: Model, sampling: Sampling, plan: Planner, priority: Priority
    ) -> AsyncGenerator[Event, None]:
        async def conclude(end: End) -> End:
            return growth.closed(end)

        produce = partial(self._produce, growth, model, sampling, plan, "", priority=priority)
        run = self.runs.start(Run(produce, conclude))
        try:
            async with aclosing(run.attach()) as events:
                async for event in events:
                    yield event
        finally:
            await run.stop()

    async def ask(self, text: str, *, model: str | None = None, sampling: Sampling = ANY) -> str:
        """One question, one answer, nothing stored.

        Raises:
            RallyChatError: the answer could not be made.
        """
        said: list[str] = []
        async with aclosing(
            self.complete([Message.of("user", text)], model=model, sampling=sampling)
        ) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    said.append(event.text)
                elif isinstance(event, Failed):
                    raise EngineInterrupted(event.message, hint=event.hint)
        return "".join(said)

    # --- prompts ------------------------------------------------------------------------------------------

    async def render(self, messages: Sequence[Message], *, model: str | None = None) -> Rendered:
        """The exact prompt the model would see; needs no engine, only the weights' header if that has the template."""
        chosen = self.resolve(model)
        family = self.catalog.family(chosen)
        template = await templates.of_model(chosen, family, weights_path(chosen, self.settings), self.pool)
        return template.render(_with_default_system(messages, _default_system(chosen, family)))

    async def tokens(self, rendered: Rendered, *, model: str | None = None) -> list[int]:
        """The token ids of a rendered prompt, as the engine gets them."""
        engine = await self.pool.open(self.resolve(model))
        return [token for chunk in await tokens_of(rendered, engine.client) for token in chunk]

    async def inspect(self, conversation_id: str) -> Inspection:
        """What the model saw for the newest answer of the current branch."""
        conversation = await self.store.get(conversation_id)
        path = await self.store.path(conversation_id)
        model = self.resolve(
            next((row.model for row in reversed(path) if row.model), None) or conversation.model
        )
        family = self.catalog.family(model)
        template = await templates.of_model(model, family, weights_path(model, self.settings), self.pool)
        system, path = leading_system(conversation.system, path)
        memories = await self.contexts.memories(conversation_id)
        return inspection(model, system or _default_system(model, family), path, template, memories)


def begin_with(settings: Settings) -> starting.Start:
    """What a service of these settings begins with. May ask the hub about a model that the catalog does not have."""
    catalog = Catalog.load(settings)

    def find(name: str, base: str | None) -> Model:
        return resolve(name, catalog, settings, family=settings.family, base=base)

    return starting.start(settings, catalog, find)


def _default_system(model: Model, family: Family) -> str:
    return model.system if model.system is not None else family.default_system


def _with_default_system(messages: Sequence[Message], system: str) -> list[Message]:
    has_one = not system or any(message.role == "system" for message in messages)
    return list(messages) if has_one else [Message.of("system", system), *messages]
