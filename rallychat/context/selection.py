"""What every strategy shares: exchanges, pins and exclusions, and where to cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rallychat.context.types import WORTH, Budget, Memory, Selection, Turn

Exchange = tuple[Turn, ...]
"""A user's message and what answers it. Exchanges stay or leave as one: templates want the roles to alternate."""


def exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    """The turns in groups, each beginning with a user's message."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user" or not groups:
            groups.append([])
        groups[-1].append(turn)
    return [tuple(group) for group in groups]


def tokens(groups: Iterable[Exchange]) -> int:
    """Tokens of all their turns."""
    return sum([turn.tokens for group in groups for turn in group])


def pinned(group: Exchange) -> bool:
    """One of its messages may never leave."""
    return True in [turn.pinned for turn in group]


def excluded(group: Exchange) -> bool:
    """One of its messages may not enter; a pinned neighbour keeps the exchange, without that message's words."""
    return True in [turn.excluded for turn in group] and not pinned(group)


def valid(memory: Memory | None, turns: Sequence[Turn]) -> bool:
    """The memory belongs to this branch, and holds nothing that was excluded since."""
    if memory is None or not memory.active:
        return False
    barred = {turn.id for turn in turns if turn.excluded}
    return any(turn.id == memory.until for turn in turns) and barred.isdisjoint(memory.covers)


def split(turns: Sequence[Turn], memory: Memory | None) -> tuple[list[Exchange], list[Exchange]]:
    """Of the exchanges that `memory` stands for those that stay all the same, being pinned; and those after it."""
    ids = [turn.id for turn in turns]
    if memory is None or memory.until not in ids:
        return [], exchanges(turns)
    at = ids.index(memory.until) + 1
    while at < len(turns) and turns[at].role != "user":
        at += 1  # exchanges stay or leave as one
    older = turns[:at]
    stay = [g for g in exchanges(older) if pinned(g)] if True in [t.pinned for t in older] else []
    return stay, exchanges(turns[at:])


def selected(
    turns: Sequence[Turn], memory: Memory | None, why: str = "", *, fresh: bool = False
) -> Selection:
    """`memory`, pinned exchanges of before, and all that follows; what was excluded left out."""
    stay, newer = split(turns, memory)
    standing = stay + [group for group in newer if not excluded(group)]
    return chosen(turns, standing or newer[-1:], memory, why, fresh=fresh)


def chosen(
    turns: Sequence[Turn],
    standing: Iterable[Exchange],
    memory: Memory | None,
    why: str = "",
    *,
    fresh: bool = False,
) -> Selection:
    """The selection of those exchanges: each turn is kept, compacted, dropped or excluded."""
    stands = [turn for group in standing for turn in group]
    kept = tuple(turn.id for turn in stands if not turn.excluded)
    inside, covered = set(kept), set(memory.covers) if memory else set()
    out = [turn for turn in turns if turn.id not in inside]
    barred = tuple(turn.id for turn in turns if turn.excluded)
    return Selection(
        memory=memory,
        kept=kept,
        compacted=tuple(turn.id for turn in out if turn.id in covered and not turn.excluded),
        dropped=tuple(turn.id for turn in out if turn.id not in covered and not turn.excluded),
        excluded=barred,
        blank=tuple(turn.id for turn in stands if turn.excluded),
        why=why,
        fresh=fresh,
    )


def beside(selection: Selection, memory: Memory, turns: Sequence[Turn]) -> Selection:
    """The same turns beside a memory that was made of theirs just now; what it still covers is told anew."""
    out, covered = {*selection.compacted, *selection.dropped}, set(memory.covers)
    return replace(
        selection,
        memory=memory,
        compacted=tuple(turn.id for turn in turns if turn.id in out & covered),
        dropped=tuple(turn.id for turn in turns if turn.id in out - covered),
        why=memory.why,
        fresh=True,
    )


def older_than(turns: Sequence[Turn], room: int) -> list[Exchange]:
    """The exchanges that leave so that the newest fill at most `room`; the last one always stays."""
    groups = [group for group in exchanges(turns) if not excluded(group)]
    left = room - tokens(groups[-1:]) - tokens(group for group in groups[:-1] if pinned(group))
    for index in range(len(groups) - 2, -1, -1):
        if not pinned(groups[index]):
            left -= tokens([groups[index]])
        if left < 0:
            everything = exchanges(turns)
            return everything[: everything.index(groups[index]) + 1]
    return []


def size(turns: Sequence[Turn], memory: Memory | None, *, memory_tokens: int) -> int:
    """Tokens of the prompt's messages as `selected` would take them."""
    stay, newer = split(turns, memory)
    standing = stay + [group for group in newer if not excluded(group)]
    return tokens(standing) + (memory_tokens if memory else 0)


def tokens_of_text(text: str, turns: Sequence[Turn]) -> int:
    """An estimate of `text` in tokens, by the tokens that these turns take."""
    return int(len(text) * rate(turns)) + 1


def rate(turns: Sequence[Turn]) -> float:
    """Tokens that a character takes in these turns."""
    characters = sum([len(turn.text) for turn in turns])
    return min(max(sum([turn.tokens for turn in turns]) / characters, 0.15), 1.5) if characters else 0.25


def over(turns: Sequence[Turn], memory: Memory | None, mark: int) -> bool:
    """The prompt's messages pass `mark` tokens."""
    remembered = tokens_of_text(memory.text, turns) if memory and memory.text else 0
    return size(turns, memory, memory_tokens=remembered) > mark


def worth(turns: Sequence[Turn], memory: Memory | None, until: str, budget: Budget) -> bool:
    """So much leaves with a memory until there, beyond what left before, that it is worth reading the rest anew."""
    _, newer = split(turns, memory)
    leaving: list[Exchange] = []
    for group in newer:
        leaving.append(group)
        if until in [turn.id for turn in group]:
            freed = tokens(g for g in leaving if not pinned(g) and not excluded(g))
            return freed >= budget.high * WORTH
    return False


def room(turns: Sequence[Turn], budget: Budget) -> int:
    """The low mark, but always enough for the last exchange."""
    return max(budget.low, tokens(exchanges(turns)[-1:]))
