"""Answers that are not stored, and prompts to look at: a service without conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

from rallychat import templates
from rallychat.accounts import Accounts
from rallychat.allowance import Allowances, limits_of_all
from rallychat.answering import Growth, generate, in_time
from rallychat.catalog import ANY, Catalog, Family, Model, Sampling
from rallychat.contexts import Contexts
from rallychat.errors import EngineInterrupted, InvalidRequest
from rallychat.latency import Latencies
from rallychat.messages import Event, Failed, Finished, Message, TextDelta
from rallychat.metrics import Metrics
from rallychat.parsing import AnswerParser
from rallychat.planning import Plan, plan_ids, plan_messages, plan_text, tokens_of
from rallychat.pool import Engine, Priority
from rallychat.prompts import Rendered
from rallychat.recording import Recorder, traced
from rallychat.runs import Emit, End, Run, Runs
from rallychat.settings import Settings
from rallychat.shelf import Shelf
from rallychat.sources import weights_path
from rallychat.store import ConversationStore
from rallychat.texts import encodable
from rallychat.wishes import Asked

Planner = Callable[[Engine], Awaitable[Plan]]


class Stateless(Shelf):
    """Models that answer, and what all answers share: runs, limits, metrics, contexts."""

    def __init__(self, settings: Settings, catalog: Catalog, store: ConversationStore) -> None:
        super().__init__(settings, catalog)
        self.store = store
        self.accounts = Accounts(store, settings)
        self.notes: tuple[str, ...] = ()
        self.metrics = Metrics(self.pool, running=lambda: self.runs.growing)
        self._latencies = Latencies(settings)
        self.contexts = Contexts(
            settings,
            catalog,
            store,
            latency=self._latencies.pace,
            summary_prompt=lambda model_id: self.choices.of(model_id).summary_prompt,
        )
        self._recorder = Recorder(store, self.pool)
        self.runs = Runs(self._recorder.save)
        self.allowances = Allowances(
            self.accounts.people.get, self.runs.count_of, default=limits_of_all(settings)
        )

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
        with self.metrics.answer(model.id, growth) as outcome, self._spending(growth, priority):
            async with in_time(growth):
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

    @contextmanager
    def _spending(self, growth: Growth, priority: Priority) -> Iterator[None]:
        try:
            yield
        finally:
            usage = growth.usage
            if priority is not Priority.BATCH and usage.completion_tokens:
                self.allowances.spent(usage.prompt_tokens + usage.completion_tokens)

    # --- stateless ----------------------------------------------------------------------------------------

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        model: str | None = None,
        sampling: Sampling = ANY,
        priority: Priority = Priority.CHAT,
        context: Asked | None = None,
        patience: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Answers `messages` without storing anything. Closing the generator stops the answer.

        What does not fit is an error, unless `context` names a strategy; so is a turn that does not come within
        `patience` seconds. The last event is `Finished` or `Failed`.
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
                _with_default_system(messages, default_system(chosen, family)),
                template=templates.choose(chosen, family, engine.info),
                client=engine.client,
                window=engine.info.window,
                max_tokens=sampling.max_tokens,
            )

        growth = Growth(AnswerParser(family.reasoning))
        growth.give_up_after(patience)
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
        patience: float | None = None,
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
        growth.give_up_after(patience)
        async with aclosing(self._stateless(growth, chosen, merged, plan, priority)) as events:
            async for event in events:
                yield event

    async def _stateless(
        self, growth: Growth, model: Model, sampling: Sampling, plan: Planner, priority: Priority
    ) -> AsyncGenerator[Event, None]:
        self.runs.admit()
        if priority is not Priority.BATCH:
            await self.allowances.take()

        async def conclude(end: End) -> End:
            traced(growth, model.id, end)
            return growth.closed(end)

        produce = partial(self._produce, growth, model, sampling, plan, "", priority=priority)
        run = self.runs.start(Run(produce, conclude))
        self.allowances.began()
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
        return template.render(_with_default_system(messages, default_system(chosen, family)))

    async def tokens(self, rendered: Rendered, *, model: str | None = None) -> list[int]:
        """The token ids of a rendered prompt, as the engine gets them."""
        engine = await self.pool.open(self.resolve(model))
        return [token for chunk in await tokens_of(rendered, engine.client) for token in chunk]


def default_system(model: Model, family: Family) -> str:
    """The system prompt where none is given: the model's own, or its family's."""
    return model.system if model.system is not None else family.default_system


def _with_default_system(messages: Sequence[Message], system: str) -> list[Message]:
    has_one = not system or any(message.role == "system" for message in messages)
    return list(messages) if has_one else [Message.of("system", system), *messages]
