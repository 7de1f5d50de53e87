"""`rallychat bench context`: what each strategy keeps of recorded conversations, and what it costs. Needs no model.

Each conversation is replayed turn by turn with the strategies that chats use. At a probe the prompt is built with the
question in it, and it is counted which of the messages that hold the answer are there, word for word. Where a strategy
would let a model write the memory, its stand-in by rules is used.

Costs are in tokens the engine would have to read, over the tokens of new user turns: `critical` while a person waits,
`total` with what is done in idle time. Quotes of older turns are part of the new turn: `quoted` tells their
tokens a turn, `quoting` the share of turns that have any, in percent, `longest` the most that one has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rallychat.bench.lengths import lengths
from rallychat.bench.replays import Probe, Replay, Said
from rallychat.context.embedding import Embedder
from rallychat.context.index import Hit, Index
from rallychat.context.retrieval import Quote, recalled
from rallychat.context.selection import tokens_of_text
from rallychat.context.strategies import strategy_named
from rallychat.context.types import Budget, Memory, Selection, Strategy, Turn
from rallychat.settings import Settings

Count = Callable[[Sequence[str]], Sequence[int]]
FRAME = 5
"""Tokens a template adds to a message."""
_PIECES = re.compile(r"\w{1,6}|[^\w\s]")


def approximate(texts: Sequence[str]) -> list[int]:
    """Tokens by rule: one for each six letters of a word, one for each other sign. Within 10 % for English."""
    return [len(_PIECES.findall(text)) for text in texts]


async def counted_by_model(settings: Settings, conversations: Sequence[Replay]) -> Count | None:
    """Counts with the tokenizer of the default model; None where its weights are not here."""
    texts = {said.content for replay in conversations for said in replay.messages}
    texts |= {probe.question for replay in conversations for probe in replay.probes}
    known = await lengths(settings, texts)
    return None if known is None else lambda asked: [known[text] for text in asked]


def run_context(
    conversations: Sequence[Replay],
    *,
    strategies: Sequence[str],
    budgets: Sequence[int],
    count: Count = approximate,
    embedder: Embedder | None = None,
    reading: float | None = None,
) -> list[dict[str, Any]]:
    """One row per strategy and budget. Deterministic.

    Args:
        embedder: searches by meaning too; None: by words alone.
        reading: milliseconds a token takes to be read: where that is felt, fewer and shorter quotes are made.
    """
    replays = [prepared(replay, count, embedder) for replay in conversations]
    rows = []
    for name in strategies:
        for budget in budgets:
            tally = Tally()
            for replay in replays:
                play(replay, strategy_named(name), budget, tally, reading=reading)
            rows.append({"strategy": name, "budget": budget, **tally.row()})
    return rows


@dataclass
class Tally:
    """Sums over conversations."""

    recall: list[float] = field(default_factory=list)
    all_there: list[bool] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    new: int = 0
    critical: int = 0
    idle: int = 0
    quotes: list[int] = field(default_factory=list)
    """Tokens of them, turn by turn."""

    def row(self) -> dict[str, Any]:
        """As it is printed; percent and tokens."""
        new = max(1, self.new)
        return {
            "recall": _percent(self.recall),
            "all_evidence": _percent(self.all_there),
            "prompt_tokens": round(sum(self.used) / max(1, len(self.used))),
            "critical": round(self.critical / new, 2),
            "total": round((self.critical + self.idle) / new, 2),
            "quoted": round(sum(self.quotes) / max(1, len(self.quotes))),
            "quoting": _percent([tokens > 0 for tokens in self.quotes]),
            "longest": max(self.quotes, default=0),
            "probes": len(self.recall),
        }


def _percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 1) if values else 0.0


@dataclass(frozen=True)
class Prepared:
    """A replay with everything that does not depend on strategy and budget."""

    turns: list[Turn]
    hits: Mapping[str, Sequence[Hit]]
    """By the user's message, or by the question of a probe: which older passages fit it."""
    probes: Sequence[tuple[int, Probe, Turn]]
    """How many messages came before it, the probe, its question."""


def prepared(replay: Replay, count: Count, embedder: Embedder | None = None) -> Prepared:
    """Counts and searches once."""
    sizes = count([said.content for said in replay.messages] + [probe.question for probe in replay.probes])
    turns = [_turn(said, size) for said, size in zip(replay.messages, sizes, strict=False)]
    places = {said.id: index + 1 for index, said in enumerate(replay.messages)}
    probes = [
        (
            places[probe.after] if probe.after else len(turns),
            probe,
            Turn(f"?{n}", "user", probe.question, size + FRAME),
        )
        for n, (probe, size) in enumerate(zip(replay.probes, sizes[len(turns) :], strict=True))
    ]
    return Prepared(turns, dict(_searched(turns, probes, embedder)), probes)


def _turn(said: Said, size: int) -> Turn:
    return Turn(said.id, said.role, said.content, size + FRAME, said.when)


def _searched(
    turns: Sequence[Turn], probes: Sequence[tuple[int, Probe, Turn]], embedder: Embedder | None
) -> Iterator[tuple[str, list[Hit]]]:
    """The hits of each question among what was said before it, by the search that chats use."""
    index = Index(embedder)
    for number in range(len(turns) + 1):
        asked = [question for at, _, question in probes if at == number]
        if number < len(turns) and turns[number].role == "user":
            asked.append(turns[number])
        for question in asked:
            yield question.id, index.find(question.text)
        if number < len(turns):
            index.take([turns[number]])


def play(
    replay: Prepared, strategy: Strategy, limit: int, tally: Tally, *, reading: float | None = None
) -> None:
    """Replays one conversation: what each prompt holds, and what of it the engine has in its cache."""
    budget = Budget(window=limit, answer=0, reading=reading)
    memory: Memory | None = None
    cache: list[tuple[str, int]] = []
    so_far: list[Turn] = []
    asked = {at: [p for p in replay.probes if p[0] == at] for at, _, _ in replay.probes}
    for number, turn in enumerate(replay.turns):
        for _, probe, question in asked.get(number, ()):
            _probed(replay, probe, [*so_far, question], strategy, memory, budget, tally)
        so_far.append(turn)
        if turn.role != "user":
            cache = [*cache, (turn.id, turn.tokens)]
            if found := strategy.compact(so_far, memory, budget):
                memory, so_far = found.rules, replay.turns[: number + 1]  # quotes in older turns are gone
                ahead = Built(so_far, strategy.select(so_far, memory, budget)).prompt
                tally.idle += _unread(cache, ahead) + len(found.ask) // 4
                cache = ahead
            continue
        built = _built(replay, so_far, strategy, memory, budget)
        if built.selection.fresh:
            memory, so_far = built.selection.memory, replay.turns[: number + 1]
        tally.quotes.append(built.quoted)
        tally.new, tally.critical = (
            tally.new + turn.tokens + built.quoted,
            tally.critical + _unread(cache, built.prompt),
        )
        cache = built.prompt
        so_far[-1] = replace(turn, tokens=turn.tokens + built.quoted)
    for _, probe, question in asked.get(len(replay.turns), ()):
        _probed(replay, probe, [*so_far, question], strategy, memory, budget, tally)


@dataclass(frozen=True)
class Built:
    """One prompt."""

    turns: Sequence[Turn]
    selection: Selection
    quotes: Sequence[Quote] = ()

    @property
    def prompt(self) -> list[tuple[str, int]]:
        """The prompt as named stretches with their tokens."""
        memory, sizes = self.selection.memory, {turn.id: turn.tokens for turn in self.turns}
        head = []
        if memory and memory.text:
            before = self.turns[: [turn.id for turn in self.turns].index(memory.until) + 1]
            head = [(f"memory {memory.until}", tokens_of_text(memory.text, before))]
        tail = [(name, sizes[name]) for name in self.selection.kept]
        if self.quotes:
            tail[-1] = (tail[-1][0], tail[-1][1] + self.quoted)
        return head + tail

    @property
    def quoted(self) -> int:
        """Tokens of its quotes."""
        return sum(quote.tokens for quote in self.quotes)

    @property
    def size(self) -> int:
        """Its tokens."""
        return sum(size for _, size in self.prompt)


def _unread(cache: Sequence[tuple[str, int]], prompt: Sequence[tuple[str, int]]) -> int:
    shared = 0
    for one, other in zip(cache, prompt, strict=False):
        if one != other:
            break
        shared += 1
    return sum(size for _, size in prompt[shared:])


def _built(
    replay: Prepared, turns: Sequence[Turn], strategy: Strategy, memory: Memory | None, budget: Budget
) -> Built:
    selection = strategy.select(turns, memory, budget)
    out = {*selection.compacted, *selection.dropped}
    if not strategy.retrieves or not out:
        return Built(turns, selection)
    room = min(budget.retrieved, budget.limit - Built(turns, selection).size)
    *before, question = turns
    hits = replay.hits.get(question.id, ())
    taken = recalled(before, hits, question.text, out=out, room=room, slow=budget.slow)
    return Built(turns, selection, taken)


def _probed(
    replay: Prepared,
    probe: Probe,
    turns: Sequence[Turn],
    strategy: Strategy,
    memory: Memory | None,
    budget: Budget,
    tally: Tally,
) -> None:
    built = _built(replay, turns, strategy, memory, budget)
    there = {*built.selection.kept, *(quote.id for quote in built.quotes)}
    texts = {turn.id: turn.text.strip() for turn in turns}
    remembered = built.selection.memory.text if built.selection.memory else ""
    found = [name in there or texts[name] in remembered for name in probe.evidence]
    tally.recall.append(sum(found) / len(found))
    tally.all_there.append(all(found))
    tally.used.append(built.size)
    assert built.size <= budget.limit or len(built.selection.kept) == 1, "a prompt beyond its budget"
