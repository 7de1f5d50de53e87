"""The strategies, by name. Each answers two questions: what goes into the prompt, and what becomes memory when.

All but `last_n` let the prompt only grow until it passes the high mark, and then make room at once, down to the
low mark: between two compactions each prompt begins with the one before, and the engine evaluates only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rallychat.context import memory as memories
from rallychat.context.selection import (
    chosen,
    exchanges,
    excluded,
    older_than,
    over,
    pinned,
    room,
    selected,
    valid,
    worth,
)
from rallychat.context.types import Budget, Compaction, Memory, Selection, Strategy, Turn
from rallychat.errors import InvalidRequest

MADE_ROOM = "the prompt had reached its limit, so the oldest turns left"
IN_TIME = "no idle time came to make room, and the first token began to come late, so the oldest turns left"


@dataclass(frozen=True, slots=True)
class Full:
    """Everything, until the window is full; then the oldest turns leave, down to the low mark."""

    name: str = "full"
    retrieves: bool = False

    def select(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Selection:
        """All that follows the last cut; a new cut where that does not fit."""
        memory = memory if memory and memory.kind == "cut" and valid(memory, turns) else None
        if not over(turns, memory, budget.usable):
            return selected(turns, memory)
        leaving = older_than(turns, room(turns, budget))
        return (
            selected(turns, memories.cut(leaving, MADE_ROOM), MADE_ROOM, fresh=True)
            if leaving
            else selected(turns, memory)
        )

    def compact(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Compaction | None:
        """Never: nothing is remembered of what left."""
        return None


@dataclass(frozen=True, slots=True)
class LastN:
    """The last `exchanges` exchanges. The prompt begins elsewhere each turn, so nothing of it is reused."""

    exchanges: int = 3
    name: str = "last_n"
    retrieves: bool = False

    def select(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Selection:
        """The newest exchanges as far as they fit, and what is pinned."""
        groups = [group for group in exchanges(turns) if not excluded(group)]
        standing = [g for g in groups[: -self.exchanges - 1] if pinned(g)] + groups[-self.exchanges - 1 :]
        while over([t for g in standing for t in g], None, budget.usable) and len(standing) > 1:
            loose = next((i for i, group in enumerate(standing[:-1]) if not pinned(group)), None)
            if loose is None:
                break
            standing.pop(loose)
        return chosen(turns, standing, None, f"the last {self.exchanges} exchanges are kept")

    def compact(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Compaction | None:
        """Never: nothing is remembered of what left."""
        return None


Writes = Literal["ledger", "facts", "summary", "both"]


@dataclass(frozen=True, slots=True)
class Remembering:
    """A memory of older turns in front of the newest ones.

    Args:
        name: as people choose it.
        writes: what the memory is. `ledger` needs no model; the others are asked for in idle time, and where
            there was none before the window is full, or what came is no good, a ledger stands in.
        retrieves: older turns that fit the question are quoted beside it.
        ask: what the model is asked, if not our own words.
    """

    name: str
    writes: Writes = "ledger"
    retrieves: bool = False
    ask: str = ""

    def select(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Selection:
        """The memory and all that follows it. Where that is too long, a ledger makes room at once."""
        memory = memory if valid(memory, turns) else None
        if not over(turns, memory, budget.ceiling):
            return selected(turns, memory)
        must = over(turns, memory, budget.usable)
        why = MADE_ROOM if must else IN_TIME
        made = self._ledger(turns, memory, budget, why)
        if made is None or not (must or worth(turns, memory, made.until, budget)):
            return selected(turns, memory)
        return selected(turns, made, why, fresh=True)

    def compact(self, turns: Sequence[Turn], memory: Memory | None, budget: Budget) -> Compaction | None:
        """Everything but the newest turns, once the prompt passes the high mark, or is about to."""
        memory = memory if valid(memory, turns) else None
        if not over(turns, memory, budget.due):
            return None
        did = "passed" if over(turns, memory, budget.high) else "was about to pass"
        why = f"the prompt {did} {budget.high:,} tokens ({budget.why})"
        rules = self._ledger(turns, memory, budget, why)
        if rules is None or not worth(turns, memory, rules.until, budget):
            return None
        if self.writes == "ledger":
            return Compaction(rules.until, rules, why)
        return Compaction(
            rules.until,
            rules,
            why,
            ask=self.ask or _ASKS[self.writes],
            max_tokens=max(32, budget.memory),
            check=partial(
                memories.written,
                rules=rules,
                before=memory,
                turns=turns,
                kind="facts" if self.writes == "facts" else "summary",
                room=budget.memory,
            ),
        )

    def _ledger(
        self, turns: Sequence[Turn], before: Memory | None, budget: Budget, why: str
    ) -> Memory | None:
        leaving = older_than(turns, room(turns, budget))
        adds = self.writes != "ledger"
        return memories.ledger(leaving, before, room=budget.memory, why=why, adds=adds) if leaving else None


_ASKS = {"facts": memories.FACTS_PROMPT, "summary": memories.SUMMARY_PROMPT, "both": memories.BOTH_PROMPT}

_BY_NAME: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Full(),
        LastN(),
        Remembering("summary", writes="summary"),
        Remembering("ledger"),
        Remembering("facts", writes="facts"),
        Remembering("hybrid", retrieves=True),
    )
}
SMALL, MIDDLE = 1_500_000_000, 5_000_000_000
"""Parameters up to which a model is not trusted with a memory at all, and with more than single facts."""


def register_strategy(strategy: Strategy) -> None:
    """Makes a strategy of your own available by its name, in settings, page, API and command line."""
    _BY_NAME[strategy.name] = strategy


def names() -> tuple[str, ...]:
    """Every strategy's name."""
    return tuple(_BY_NAME)


def strategy_named(
    name: str, *, exchanges: int | None = None, parameters: int | None = None, ask: str = ""
) -> Strategy:
    """The strategy of that name, fitted to a model.

    Args:
        name: one of `names()`.
        exchanges: how many `last_n` keeps; None: three.
        parameters: of the model; `hybrid` lets only models remember that are large enough. None: unknown.
        ask: the summary prompt, if not our own.

    Raises:
        InvalidRequest: there is none of that name.
    """
    found = _BY_NAME.get(name)
    if found is None:
        known = ", ".join(_BY_NAME)
        raise InvalidRequest(f"There is no strategy '{name}'.", param="strategy", hint=f"there are {known}")
    if isinstance(found, LastN):
        return found if exchanges is None else LastN(exchanges)
    if isinstance(found, Remembering):
        writes = _written_by(parameters) if name == "hybrid" else found.writes
        return Remembering(found.name, writes, found.retrieves, ask if writes != "ledger" else "")
    return found


def _written_by(parameters: int | None) -> Writes:
    if parameters is None or parameters <= SMALL:
        return "ledger"
    return "facts" if parameters <= MIDDLE else "both"
