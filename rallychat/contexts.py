"""The context of conversations: their prompts, what is remembered of them, and what a person says about either.

Joins the strategies of `rallychat.context` with the store. Runs nothing: whoever has an engine asks for a prompt,
and for what to do with it in idle time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from rallychat import templates
from rallychat.basis import Basis, basis_of
from rallychat.catalog import Catalog, Model
from rallychat.catalog.sizing import parameter_count
from rallychat.context.strategies import strategy_named
from rallychat.context.types import Budget, Compaction, Memory, Pace, Strategy, answer_reserve
from rallychat.errors import Conflict, InvalidRequest, NotFound
from rallychat.messages import Message, Text
from rallychat.planning import Plan, Voice, leading_system, plan_turn
from rallychat.pool import Engine
from rallychat.recall import Recall, searched
from rallychat.recent import Recent
from rallychat.settings import Settings
from rallychat.store import Conversation, ConversationStore, StoredMessage
from rallychat.store.contexts import Versions, newest, versions_of
from rallychat.store.types import Mark
from rallychat.turns import Turns, turns_of
from rallychat.wishes import AS_EVER, Asked, Wish

REMEMBERED = 256
"""Conversations whose last prompt is kept, to tell where the next one leaves it."""
BUDGETS = range(64, 2**31)
"""Tokens that somebody may give a conversation's prompts; as many as every database can keep."""
SAFETY = 0.01
"""Share of the window kept free for what counting cannot know."""

Latency = Callable[[str], Pace | None]
"""How fast a model reads on this machine, if it was measured."""


class Contexts:
    """How the context of each conversation is kept.

    Args:
        latency: asked for a budget by measured speed; see `Latency`.
        summary_prompt: what somebody chose to ask a model for a summary, by its id; empty: as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: ConversationStore,
        *,
        latency: Latency = lambda _model: None,
        summary_prompt: Callable[[str], str] = lambda _model: "",
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._store = store
        self.latency = latency
        self._summary_prompt = summary_prompt
        self._recall = Recall(settings, store)
        self._turns = Turns()
        self._last: Recent[str, list[int]] = Recent(REMEMBERED)
        self._background: Recent[str, float] = Recent(REMEMBERED)

    # --- prompts ------------------------------------------------------------------------------------------

    async def plan(
        self,
        conversation: Conversation,
        tip: str | None,
        *,
        model: Model,
        engine: Engine,
        max_tokens: int | None = None,
        wish: Wish = AS_EVER,
    ) -> Plan:
        """The prompt of the branch that ends at `tip`: a question, or an answer that goes on.

        Raises:
            ContextOverflow: what must stay does not fit. InvalidRequest: the question itself is excluded, or
                the exchange of an answer that is to go on.
        """
        while True:
            path, memory = await self._store.view(conversation.id, tip=tip)
            plan = await self._plan(conversation, wish.marking(path), memory, model, engine, max_tokens, wish)
            if plan.fresh is None:
                break
            try:
                stored = await self._replace(conversation.id, path, memory, plan.fresh)
            except Conflict:
                continue  # it was made from what is no longer in force
            plan = replace(plan, report=replace(plan.report, memory=stored.version))
            break
        self._last[conversation.id] = plan.ids
        spent = self._background.pop(conversation.id, 0.0)
        return replace(plan, report=replace(plan.report, background_ms=round(spent, 1))) if spent else plan

    async def _plan(
        self,
        conversation: Conversation,
        path: list[StoredMessage],
        memory: Memory | None,
        model: Model,
        engine: Engine,
        max_tokens: int | None,
        wish: Wish,
    ) -> Plan:
        if _excluded(path):
            raise InvalidRequest(
                "This message is excluded, so it cannot be answered.", hint="include it again"
            )
        voice, path = self._voice(conversation, path, model, engine)
        said = (wish.elsewhere, conversation.elsewhere, self._settings.elsewhere)
        elsewhere = next(each for each in said if each is not None)
        return await plan_turn(
            path,
            voice=voice,
            strategy=self.strategy(conversation, model, wish.strategy),
            budget=self.budget(conversation, model, engine, max_tokens, asked=wish.budget),
            memory=memory,
            search=partial(self._recall.search, conversation.id),
            elsewhere=partial(self._recall.elsewhere, conversation.id) if elsewhere else None,
            previous=self._last.get(conversation.id),
            turns_as=partial(self._turns.of, conversation.id),
        )

    async def _replace(
        self, conversation_id: str, path: Sequence[StoredMessage], memory: Memory | None, fresh: Memory
    ) -> Memory:
        """Stores what was made from `memory`. Raises Conflict if another one is in force on this branch by now."""
        made = await self._store.contexts.memories(conversation_id)
        if newest(made, [row.id for row in path]) != memory:
            raise Conflict("What is remembered of this conversation has changed meanwhile.")
        return await self._store.contexts.remember(conversation_id, fresh, known=versions_of(made))

    async def plan_unstored(
        self,
        messages: Sequence[Message],
        asked: Asked,
        *,
        model: Model,
        engine: Engine,
        max_tokens: int | None = None,
    ) -> Plan:
        """The prompt of a request that stores nothing and names a strategy; its report names messages by index."""
        rows = [asked.row(index, message) for index, message in enumerate(messages)]
        if _excluded(rows):
            raise InvalidRequest("The last message cannot be excluded: it is what is asked.", param="exclude")
        voice, path = self._voice(None, rows, model, engine)
        if not path:
            raise InvalidRequest("There is nothing to answer but a system prompt.", param="messages")
        return await plan_turn(
            path,
            voice=voice,
            strategy=self.strategy(None, model, asked.strategy),
            budget=self.budget(None, model, engine, max_tokens, asked=asked.budget),
            search=searched,
        )

    def strategy(self, conversation: Conversation | None, model: Model, name: str | None = None) -> Strategy:
        """As the request says, else the conversation, the settings, the model, its family; else hybrid.

        Raises:
            InvalidRequest: there is none of that name.
        """
        usual = model.context.over(self._catalog.family(model).context)
        chosen = name or (conversation.strategy if conversation else None) or self._settings.strategy
        return strategy_named(
            chosen or usual.strategy or "hybrid",
            exchanges=usual.exchanges,
            parameters=parameter_count(model),
            ask=self._summary_prompt(model.id) or self._settings.summary_prompt,
        )

    def budget(
        self,
        conversation: Conversation | None,
        model: Model,
        engine: Engine,
        max_tokens: int | None = None,
        *,
        asked: int | None = None,
    ) -> Budget:
        """Tokens a prompt may have: the engine's window, what a person asked for, what this machine is fast with."""
        window = engine.info.window
        pace = self.latency(model.id)
        return Budget(
            window=window,
            answer=answer_reserve(window, max_tokens),
            safety=int(window * SAFETY),
            asked=asked or (conversation.budget if conversation else None),
            latency=pace.limit if pace else None,
            latency_why=pace.why if pace else "",
            reading=pace.reading if pace else None,
        )

    def _voice(
        self, conversation: Conversation | None, path: Sequence[StoredMessage], model: Model, engine: Engine
    ) -> tuple[Voice, list[StoredMessage]]:
        family = self._catalog.family(model)
        template = templates.choose(model, family, engine.info)
        asked, rest = leading_system(conversation.system if conversation else "", path)
        system = asked or (model.system if model.system is not None else family.default_system)
        return Voice(system, template, (model.id, template.source), engine.client), rest

    # --- idle time ----------------------------------------------------------------------------------------

    async def ahead(
        self,
        conversation: Conversation,
        *,
        model: Model,
        engine: Engine,
        max_tokens: int | None = None,
        wish: Wish = AS_EVER,
        memory: Memory | None = None,
        ask: str = "",
        growing: str | None = None,
    ) -> Plan:
        """What the next prompt will begin with, to be evaluated before it is asked for. Nothing is stored.

        Args:
            max_tokens: of the next answer, as for `plan`: the budget depends on it.
            wish: of the next answer, as far as is known: that of the one before.
            memory: as if this were the conversation's memory already; warm the result, then `commit` it.
            ask: said to the model after the newest answer: a summary, a title. All before it is cached, and
                what it answers is for `Compaction.check` or the title; it enters no conversation.
            growing: what the newest answer, which is not complete, says so far.
        """
        path, standing = await self._store.view(conversation.id)
        path = wish.marking(path)
        strategy = self.strategy(conversation, model, wish.strategy)
        if not ask and growing is None and strategy.retrieves:
            await self._recall.keep(conversation.id, turns_of(path))
        if growing is not None:
            said = [replace(path[-1], parts=(Text(growing),), span=None)] if growing else []
            path = [*path[:-1], *said]
        if ask:
            path = [*path, _question(path[-1], ask)]
        voice, path = self._voice(conversation, path, model, engine)
        return await plan_turn(
            path,
            voice=replace(voice, goes_on=False),
            strategy=strategy,
            budget=self.budget(conversation, model, engine, max_tokens, asked=wish.budget),
            memory=memory or standing,
            turns_as=partial(self._turns.of, conversation.id),
        )

    async def due(
        self,
        conversation: Conversation,
        *,
        model: Model,
        engine: Engine,
        max_tokens: int | None = None,
        wish: Wish = AS_EVER,
        tip: str | None = None,
        lead: int = 0,
    ) -> tuple[Compaction, Basis] | None:
        """What is to be compacted now that an answer is there (the newest, or `tip`); None if nothing is too long.

        Args:
            lead: tokens that the prompt will have gained before the room is there.
        """
        rows = wish.marking(await self._store.path(conversation.id, tip=tip or conversation.tip_id))
        if not rows or rows[-1].role != "assistant" or rows[-1].status == "running":
            return None
        voice, path = self._voice(conversation, rows, model, engine)
        known = await self._store.contexts.memories(conversation.id)
        ids = [row.id for row in path]
        memory = newest(known, ids)
        budget = self.budget(conversation, model, engine, max_tokens, asked=wish.budget)
        budget = replace(budget, fixed=len(voice.system) // 4, lead=lead)
        found = self.strategy(conversation, model, wish.strategy).compact(turns_of(path), memory, budget)
        undone = {m.until for m in known if not m.active}
        if found is None or found.until in undone:
            return None
        read = rows[-1].id if found.ask else found.until
        basis = basis_of(conversation, rows, known, read, model, max_tokens, wish)
        return None if basis is None else (found, basis)

    async def basis(
        self, conversation_id: str, until: str, *, model: Model, max_tokens: int | None, wish: Wish = AS_EVER
    ) -> Basis | None:
        """What a memory that is made of the messages up to `until` is held to as things are; None: not in view."""
        conversation = await self._store.get(conversation_id)
        path = wish.marking(await self._store.path(conversation_id))
        known = await self._store.contexts.memories(conversation_id)
        return basis_of(conversation, path, known, until, model, max_tokens, wish)

    async def commit(
        self, conversation_id: str, memory: Memory, *, known: Versions | None = None, took_ms: float = 0.0
    ) -> Memory:
        """Swaps the memory in: the next prompt has it. Call it when that prompt's beginning is warm.

        Args:
            known: the versions that it was made from; None: whatever there is.

        Raises:
            NotFound: the conversation, or the message the memory belongs to, was deleted meanwhile.
            Conflict: there are others than those that are `known`.
        """
        self.spent(conversation_id, took_ms)
        return await self._store.contexts.remember(conversation_id, memory, known=known)

    def spent(self, conversation_id: str, milliseconds: float) -> None:
        """Counts engine time spent on a conversation in the background; its next report tells it."""
        self._background[conversation_id] = self._background.get(conversation_id, 0.0) + milliseconds

    # --- what a person says -------------------------------------------------------------------------------

    async def memory(self, conversation_id: str) -> Memory | None:
        """The memory in force on the branch in view."""
        return (await self._store.view(conversation_id))[1]

    async def memories(self, conversation_id: str) -> list[Memory]:
        """Every version of a conversation's memory, oldest first, those that were undone among them."""
        await self._store.get(conversation_id)
        return await self._store.contexts.memories(conversation_id)

    async def edit_memory(self, conversation_id: str, text: str, *, version: int | None = None) -> Memory:
        """Says what is to be remembered in place of the memory in force, as a new version of it.

        Args:
            version: the one that the person saw; None: whichever is in force.

        Raises:
            NotFound: nothing is remembered of the branch in view. Conflict: another version is in force by now.
        """
        memory, known = await self._in_force(conversation_id, version)
        if memory is None:
            raise NotFound("memory", conversation_id, hint="it is made when the conversation grows long")
        kind = "ledger" if memory.kind == "cut" else memory.kind
        edited = replace(memory, kind=kind, text=text.strip(), edited_by="user", why="edited by a person")
        return await self._store.contexts.remember(conversation_id, edited, known=known)

    async def revert_memory(self, conversation_id: str, *, version: int | None = None) -> Memory | None:
        """Undoes the newest version in force; returns the one that holds now, None if older turns stand again.

        Args:
            version: the one that the person saw; None: whichever is in force.

        Raises:
            NotFound: nothing is remembered of the branch in view. Conflict: another version is in force by now.
        """
        memory, known = await self._in_force(conversation_id, version)
        if memory is None:
            raise NotFound("memory", conversation_id, hint="there is nothing to undo")
        await self._store.contexts.set_active(conversation_id, memory.version, active=False, known=known)
        return await self.memory(conversation_id)

    async def _in_force(self, conversation_id: str, seen: int | None) -> tuple[Memory | None, Versions]:
        """The memory in force on the branch in view, and all versions. Raises Conflict if it is not the `seen` one."""
        path = await self._store.path(conversation_id)
        made = await self._store.contexts.memories(conversation_id)
        memory = newest(made, [row.id for row in path])
        if memory is not None and seen not in (None, memory.version):
            raise Conflict(
                f"Version {memory.version} of the memory is in force by now, not version {seen}, which you saw.",
                hint="look at it again",
            )
        return memory, versions_of(made)

    async def restore_memory(self, conversation_id: str, version: int) -> Memory:
        """Takes back that a version was undone."""
        return await self._store.contexts.set_active(conversation_id, version, active=True)

    async def mark(self, message_id: str, mark: Mark | None) -> None:
        """Pins a message (it never leaves the prompt), excludes it (it never enters), or neither."""
        await self._store.contexts.mark(message_id, mark)

    async def set_strategy(self, conversation_id: str, name: str | None) -> Conversation:
        """How this conversation's context is kept from now on; None: as its model says."""
        if name is not None:
            strategy_named(name)
        return await self._store.update(conversation_id, strategy=name)

    async def set_budget(self, conversation_id: str, budget: int | None) -> Conversation:
        """Most tokens of this conversation's prompts; None: what the window allows."""
        if budget is not None and budget not in BUDGETS:
            raise InvalidRequest(
                f"A budget is at least {BUDGETS[0]} tokens, and at most {BUDGETS[-1]:,}.", param="budget"
            )
        return await self._store.update(conversation_id, budget=budget)

    async def set_elsewhere(self, conversation_id: str, wanted: bool | None) -> Conversation:
        """Whether this conversation quotes the person's others from now on; None: as the server is set."""
        return await self._store.update(conversation_id, elsewhere=wanted)


def _excluded(path: Sequence[StoredMessage]) -> bool:
    """The last message of the path, or the exchange it belongs to, may not enter the prompt."""
    asked = next((at for at in range(len(path) - 1, -1, -1) if path[at].role == "user"), 0)
    marks = [row.mark for row in path[asked:]]
    return marks[-1] == "exclude" or ("exclude" in marks and "pin" not in marks)


def _question(after: StoredMessage, text: str) -> StoredMessage:
    """A user's message that is in no store."""
    return replace(
        after,
        id="",
        parent_id=after.id,
        role="user",
        parts=(Text(text),),
        model=None,
        report=None,
        span=None,
        mark=None,
        created_at=datetime.now(UTC),
    )
