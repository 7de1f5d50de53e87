"""From a conversation to token ids: which messages, which ids, and the report that says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from rallychat.context import log as token_log
from rallychat.context import memory as memories
from rallychat.context.index import Hit
from rallychat.context.retrieval import Quote, block, holds_words_of, looks_back, recalled
from rallychat.context.selection import beside
from rallychat.context.types import Budget, Memory, Selection, Strategy, Turn
from rallychat.engines.client import EngineClient
from rallychat.errors import ContextOverflow
from rallychat.messages import ContextReport, Message, Piece, Role, Segment
from rallychat.prompts import PromptTemplate, Rendered
from rallychat.reporting import Sized, report_of
from rallychat.store import StoredMessage, TokenSpan
from rallychat.turns import TurnsOf, turns_of

T = TypeVar("T")
_STANDS = {"system": "the system prompt", "memory": "the memory"}
"""Entries of a prompt that stay whatever leaves."""
MUCH = 100_000
"""Characters of messages from which on a prompt is rendered in a thread."""
ELSEWHERE_SHARE = 0.4
"""Of the room for quotes, what those of other conversations may take."""
SLACK = 2
"""Times its share that a memory may have while the prompt is within the window: what it takes was an estimate."""
PIECES = 8192
"""Pieces sent to the tokenizer at a time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt ready for the engine.

    `spans` are the ids of the last message, and of those that had none, or others, to be kept; `key` is that of the
    answer's. `fresh` is a memory that was made for this prompt and belongs into the store before it is used. `said`
    counts its last ids that are an answer which goes on.
    """

    ids: list[int]
    report: ContextReport
    key: str = ""
    spans: Mapping[str, TokenSpan] = field(default_factory=dict)
    fresh: Memory | None = None
    said: int = 0


@dataclass(frozen=True, slots=True)
class Voice:
    """What a conversation's prompts are written and counted with.

    `facts` are what the ids depend on beside the text: model and template. `goes_on`: an answer at the end of a path
    is not complete; else what follows it is the next question.
    """

    system: str
    template: PromptTemplate
    facts: tuple[str, ...]
    client: EngineClient
    goes_on: bool = True


Search = Callable[[Sequence[Turn], str], Awaitable[Sequence[Hit]]]
"""Finds passages of older messages for a question."""
Elsewhere = Callable[[str, int], Awaitable[Sequence[Quote]]]
"""Finds quotes from other conversations for a question, which fill at most so many tokens."""


async def plan_turn(
    path: Sequence[StoredMessage],
    *,
    voice: Voice,
    strategy: Strategy,
    budget: Budget,
    memory: Memory | None = None,
    search: Search | None = None,
    elsewhere: Elsewhere | None = None,
    previous: list[int] | None = None,
    turns_as: TurnsOf = turns_of,
) -> Plan:
    """The prompt of a conversation: what its strategy selects, in the order system, memory, turns, question.

    The same for every use: a path that ends with an answer gives what comes before the next question, to warm it.

    Args:
        path: the branch, ending with the user's message or with the answer to be continued.
        memory: the newest one of this branch.
        search: asked for older turns where the strategy quotes them.
        elsewhere: asked for quotes of other conversations, whatever the strategy.
        previous: the ids of this conversation's prompt before, to tell where this one leaves it.
        turns_as: makes the turns of the branch.

    Raises:
        ContextOverflow: not even what must stay fits.
    """
    path = _without_barred(path)
    turns = turns_as(path, _base(voice, path, memory))
    sized = await _fitting(path, turns, voice, strategy, budget, memory)
    sized = await _with_less_memory(path, turns, sized, voice, budget)
    if path[-1].role == "user":
        here = search if strategy.retrieves else None
        sized = await _with_quotes(path, turns, sized, voice, budget, here, elsewhere)
    if sized.total >= budget.window:
        pins = "unpin a message, " if any(row.mark == "pin" for row in path) else ""
        hint = f"{pins}shorten {_longest(sized)}, or pick a model with a longer window"
        raise ContextOverflow(needed=sized.total + 1, window=budget.window, hint=hint)
    ids = [token for entry in sized.entries for token in entry.ids or ()]
    known = {row.id: row.span for row in path[:-1]}
    spans = {e.message_id: e.span for e in sized.entries if e.message_id and e.span}
    return Plan(
        ids=ids,
        report=report_of(path, turns, sized, strategy, budget, previous or [], ids),
        key=token_log.said_key(_base(voice, path, sized.selection.memory)),
        spans={name: span for name, span in spans.items() if span != known.get(name)},
        fresh=sized.selection.memory if sized.selection.fresh else None,
        said=_said(path[-1], sized) if voice.goes_on else 0,
    )


def _said(last: StoredMessage, sized: Sized) -> int:
    """Tokens of the answer that a prompt ends with."""
    *asked, entry = sized.entries
    if last.role != "assistant" or entry.message_id != last.id or not any(each.ids for each in asked):
        return 0
    return len(entry.ids or ())


def _without_barred(path: Sequence[StoredMessage]) -> Sequence[StoredMessage]:
    """The logs of messages beside which something is quoted that was excluded since are given up."""
    barred = turns_of([row for row in path if row.mark == "exclude"])
    if not barred:
        return path
    return [
        replace(row, span=None)
        if row.span and row.span.quoted and any(holds_words_of(row.span.quoted, turn) for turn in barred)
        else row
        for row in path
    ]


def _longest(sized: Sized) -> str:
    """What takes most of what must stay, in a person's words."""
    takes = {"the message": len(sized.entries[-1].ids or ())}
    takes |= {_STANDS[e.kind]: len(e.ids or ()) for e in sized.entries if e.kind in _STANDS}
    return max(takes, key=lambda name: takes[name])


async def _fitting(
    path: Sequence[StoredMessage],
    turns: list[Turn],
    voice: Voice,
    strategy: Strategy,
    budget: Budget,
    memory: Memory | None,
) -> Sized:
    """The strategy's selection with exact counts; asked again where its own were too low."""
    budget = replace(budget, fixed=len(voice.system) // 5)
    for _ in range(4):
        selection = strategy.select(turns, memory, budget)
        sized = await _sized(path, selection, voice)
        if sized.total <= budget.limit:
            break
        counted = _counted(turns, sized, budget)
        if counted == (turns, budget):
            break
        turns, budget = counted
    return sized


def _counted(turns: list[Turn], sized: Sized, budget: Budget) -> tuple[list[Turn], Budget]:
    """Turns and budget with what was just counted."""
    known = {entry.message_id: len(entry.ids or ()) for entry in sized.entries if entry.message_id}
    whole = any(entry.message_id is None and entry.kind not in _STANDS for entry in sized.entries)
    if whole or not known:  # boundaries unknown: the kept turns share the tokens by their length
        inside = [turn for turn in turns if turn.id in sized.selection.kept]
        said = sum(len(turn.text) + 1 for turn in inside)
        known = {turn.id: sized.total * (len(turn.text) + 1) // said for turn in inside}
    fixed = sum(len(entry.ids or ()) for entry in sized.entries if entry.kind == "system")
    return [replace(turn, tokens=known.get(turn.id, turn.tokens)) for turn in turns], replace(
        budget, fixed=fixed
    )


async def _with_less_memory(
    path: Sequence[StoredMessage], turns: Sequence[Turn], sized: Sized, voice: Voice, budget: Budget
) -> Sized:
    """Where a prompt is too long and its memory has far more than its share, the memory leaves by halves.

    Where the prompt would be refused, more than its share is enough. One that has no more stays, for then something
    else is too long; so does what a person wrote.
    """
    fixed = sum(len(entry.ids or ()) for entry in sized.entries if entry.kind == "system")
    share = replace(budget, fixed=fixed).memory
    while (memory := sized.selection.memory) and memory.text and memory.edited_by != "user":
        most = share if sized.total >= budget.window else SLACK * share
        if sized.total <= budget.limit or _of_memory(sized, memory) <= most:
            break
        sized = await _sized(path, beside(sized.selection, memories.halved(memory, turns), turns), voice)
    return sized


def _of_memory(sized: Sized, memory: Memory) -> int:
    """Tokens of the memory; where boundaries are unknown, by the share of the text that it is."""
    parts = [entry for entry in sized.entries if entry.kind == "memory"]
    if parts:
        return sum(len(entry.ids or ()) for entry in parts)
    said = sum(len(piece.text) for entry in sized.entries for piece in entry.pieces)
    return sized.total * len(memory.text) // said


async def _with_quotes(
    path: Sequence[StoredMessage],
    turns: Sequence[Turn],
    sized: Sized,
    voice: Voice,
    budget: Budget,
    search: Search | None,
    elsewhere: Elsewhere | None,
) -> Sized:
    """The same prompt with older turns quoted in its last message; asked again, it has those it had."""
    question, there = path[-1], sized.entries[-1].quoted
    if budget.slow and not there and not looks_back(question.text):
        return sized  # reading quotes would be felt, and nobody asked for them
    room = budget.window if there else min(budget.retrieved, budget.limit - sized.total)
    other = await elsewhere(question.text, int(room * ELSEWHERE_SHARE)) if elsewhere and room > 0 else ()
    room -= sum(quote.tokens for quote in other)
    taken = [*other]
    out = {*sized.selection.compacted, *sized.selection.dropped}
    if search is not None and out:
        hits = await search(turns[:-1], question.text)
        slow, again = budget.slow, bool(there)
        taken += recalled(turns[:-1], hits, question.text, out=out, room=room, slow=slow, again=again)
    if there:
        return replace(sized, quotes=[quote for quote in taken if quote.line in there])
    while taken:
        base = _base(voice, path, sized.selection.memory)
        shown = replace(question, span=TokenSpan(f"{base}:", (), block(taken)))
        quoted = await _sized([*path[:-1], shown], sized.selection, voice)
        if quoted.total <= budget.limit:
            return replace(quoted, quotes=taken)
        taken = taken[1:]
    return sized


async def _sized(path: Sequence[StoredMessage], selection: Selection, voice: Voice) -> Sized:
    inside = {*selection.kept, *selection.blank}
    rows = [row for row in path if row.id in inside]
    memory = selection.memory.text if selection.memory else ""
    base = _base(voice, path, selection.memory)
    entries = await _aside(
        sum(len(row.text) for row in rows) + len(memory),
        lambda: token_log.entries(
            rows,
            system=voice.system,
            memory=memory,
            template=voice.template,
            base=base,
            blank=selection.blank,
            goes_on=voice.goes_on,
        ),
    )
    unknown = [entry for entry in entries if entry.ids is None]
    fresh = iter(await _tokenized([piece for entry in unknown for piece in entry.pieces], voice.client))
    return Sized(
        selection,
        [
            entry
            if entry.ids is not None
            else entry.counted([token for _ in entry.pieces for token in next(fresh)])
            for entry in entries
        ],
    )


def _base(voice: Voice, path: Sequence[StoredMessage], memory: Memory | None) -> str:
    """Names the log: ids made with another memory in front are not used again, nor are quotes beside them.

    What a memory ends with counts by its date, which it has in a copy of the conversation, too.
    """
    if memory is None:
        return token_log.log_base(*voice.facts, "")
    ends = next((row.created_at.isoformat() for row in path if row.id == memory.until), "")
    return token_log.log_base(*voice.facts, f"{ends}:{memory.text}")


def leading_system(system: str, path: Sequence[StoredMessage]) -> tuple[str, list[StoredMessage]]:
    """System messages that begin a path belong to its system prompt; returns that, and the rest of the path."""
    head = list(itertools.takewhile(lambda row: row.role == "system", path))
    told = [text for text in (system, *(row.text for row in head)) if text]
    return "\n\n".join(told), list(path[len(head) :])


async def _tokenized(pieces: Sequence[Piece], client: EngineClient) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(pieces), PIECES):
        found += await client.tokenize(pieces[start : start + PIECES])
    return found


async def _aside(characters: int, work: Callable[[], T]) -> T:
    """`work`, in a thread if it is so much that others would feel it."""
    return await asyncio.to_thread(work) if characters > MUCH else work()


async def tokens_of(rendered: Rendered, client: EngineClient) -> list[list[int]]:
    """The ids of a rendered prompt, chunk by chunk."""
    fresh = iter(await _tokenized([piece for chunk in rendered.chunks for piece in chunk.pieces], client))
    return [[token for _ in chunk.pieces for token in next(fresh)] for chunk in rendered.chunks]


async def plan_messages(
    messages: Sequence[Message],
    *,
    template: PromptTemplate,
    client: EngineClient,
    window: int,
    max_tokens: int | None,
) -> Plan:
    """The prompt of a stateless request: all its messages, or an error; never a silent cut.

    Raises:
        ContextOverflow: prompt and answer do not fit the window.
    """
    rendered = await _aside(sum(len(m.text) for m in messages), lambda: template.render(messages))
    pieces = sum(len(chunk.pieces) for chunk in rendered.chunks)
    if pieces > window:  # each is a token at least
        raise ContextOverflow(needed=pieces, window=window)
    ids = await tokens_of(rendered, client)
    segments = (
        Segment(
            "memory" if chunk.message is None else _kind(messages[chunk.message].role),
            None if chunk.message is None else str(chunk.message),
            len(part),
        )
        for chunk, part in zip(rendered.chunks, ids, strict=True)
    )
    plan = plan_ids([token for part in ids for token in part], window=window, max_tokens=max_tokens)
    kept = tuple(str(index) for index in range(len(messages)))
    return replace(plan, report=replace(plan.report, segments=tuple(segments), kept=kept))


def _kind(role: Role) -> Literal["system", "user", "assistant"]:
    return "user" if role == "tool" else role


async def plan_text(text: str, *, client: EngineClient, window: int, max_tokens: int | None) -> Plan:
    """The prompt of a raw completion given as text; control tokens in it are recognised, as is the custom."""
    (ids,) = await client.tokenize([Piece(text, start=True)])
    return plan_ids(ids, window=window, max_tokens=max_tokens)


def plan_ids(ids: Sequence[int], *, window: int, max_tokens: int | None) -> Plan:
    """The prompt of a raw completion given as ids.

    Raises:
        ContextOverflow: prompt and answer do not fit the window.
    """
    if len(ids) + (max_tokens or 1) > window:
        raise ContextOverflow(needed=len(ids) + (max_tokens or 1), window=window)
    return Plan(
        list(ids), ContextReport(strategy="full", window=window, budget=window, prompt_tokens=len(ids))
    )
