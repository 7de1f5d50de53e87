"""Memories: the ledger that rules write, what a model is asked to write, and how its text is checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rallychat.context.selection import Exchange, exchanges, excluded, pinned, rate, tokens_of_text
from rallychat.context.types import Memory, MemoryKind, Refused, Turn

SUMMARY_PROMPT = (
    "Summarize our conversation so far for your own later use: what I told you about myself, what I asked for, "
    "what was decided, with names, numbers and dates. Write plain sentences and nothing else."
)
FACTS_PROMPT = (
    "List every new fact I told you in our conversation: names, numbers, dates, places, preferences, plans. "
    "One short line each, beginning with '- '. If something changed, write what holds now. Write nothing else."
)
BOTH_PROMPT = f"{SUMMARY_PROMPT} Then add a line 'Facts:' and below it each fact I told you, one line each."
TOO_LONG = "the memory took more tokens than was reckoned with, so the oldest of it left"
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s|\n")
_ASIDE = 200
"""Characters of an answer's first sentence that a ledger takes."""
_OLD = 0.75
"""Share of its room that a model's memory may keep where rules add to it."""
_SHORTEST = 12
_WORD = re.compile(r"\w+")
_TELLING = re.compile(r"\b(?:[A-Z][\w'-]+|\d[\d.,:]*)\b")
"""Names and numbers: what a summary must not lose all of."""


_Line = tuple[Turn, str]


def first_sentence(text: str) -> str:
    """The beginning of an answer, as a ledger quotes it."""
    said = _SENTENCE.split(text.strip(), maxsplit=1)[0].strip()
    return said if len(said) <= _ASIDE else f"{said[:_ASIDE].rstrip()}…"


def lines_of(group: Exchange) -> list[_Line]:
    """An exchange in a ledger: the user's words verbatim, the answer's first sentence; dated where it is known."""
    said = [turn for turn in group if not turn.excluded and turn.text.strip()]
    stamp = next((f"[{turn.date:%Y-%m-%d}] " for turn in said if turn.date), "")
    return [
        (
            turn,
            f"{stamp}User: {turn.text.strip()}"
            if turn.role == "user"
            else f"You: {first_sentence(turn.text)}",
        )
        for turn in said
    ]


def ledger(
    groups: Sequence[Exchange], before: Memory | None, *, room: int, why: str, adds: bool = False
) -> Memory:
    """The memory that rules write of `groups` (at least one).

    Where `room` is short answers leave before what the user said, and the oldest lines before newer ones.

    What a person wrote into the memory `before` stays, in front of the new lines.

    Args:
        adds: so does what a model wrote there: rules only stand in for it this time.
    """
    until = groups[-1][-1].id
    turns = [turn for group in groups for turn in group]
    edited = before is not None and before.edited_by == "user"
    stands = before if edited or (adds and before and before.kind in ("facts", "summary")) else None
    head = stands.text.strip() if stands else ""
    known = set(stands.covers) if stands else set()
    per_character = rate(turns)
    while not edited and per_character * len(head) > room * _OLD and "\n" in head:
        head = head.partition("\n")[2]
    said = [
        [(turn, line) for turn, line in lines_of(group) if turn.id not in known]
        for group in groups
        if not excluded(group) and not pinned(group)
    ]
    kept = _fitting(said, int(room / per_character) - len(head), most=int(room / per_character))
    text = "\n".join([*([head] if head else []), *(line for _, line in kept)])
    covers = (stands.covers if stands else ()) + tuple(turn.id for turn, _ in kept)
    return Memory(
        stands.kind if stands else "ledger", text, until, covers, "user" if edited else "rules", why
    )


def _fitting(said: Sequence[Sequence[_Line]], left: int, *, most: int) -> list[_Line]:
    """What the user said, the newest first, as far as `left` characters reach; then answers to it, likewise.

    An exchange whose question is longer than `most` is passed over: it takes no other out.
    """
    standing = []
    for lines in reversed(said):
        takes = sum([len(line) + 1 for turn, line in lines if turn.role == "user"])
        if takes > most:
            continue
        if takes > left:
            break
        left -= takes
        standing.append(lines)
    kept = {turn.id for lines in standing for turn, _ in lines if turn.role == "user"}
    for lines in standing:
        takes = sum([len(line) + 1 for turn, line in lines if turn.role != "user"])
        if takes > left:
            break
        left -= takes
        kept |= {turn.id for turn, _ in lines}
    return [(turn, line) for lines in said for turn, line in lines if turn.id in kept]


def cut(groups: Sequence[Exchange], why: str) -> Memory:
    """A memory that holds nothing: those exchanges left."""
    return Memory("cut", "", groups[-1][-1].id, (), "rules", why)


def halved(memory: Memory, turns: Sequence[Turn]) -> Memory:
    """`memory` without the older half of its lines, or of its only line; one that holds nothing where none is left.

    Turns whose own lines left are covered no longer. Which turns the lines are of that a model wrote, nobody knows:
    those stay covered while anything is left, so that excluding one of them still takes the memory away.

    Args:
        turns: of its branch.
    """
    lines = memory.text.split("\n")
    older, newer = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    text = ("\n".join(newer) if older else memory.text[(len(memory.text) + 1) // 2 :]).strip()
    if not text:
        return Memory("cut", "", memory.until, (), "rules", TOO_LONG)
    ends = set(older) - set(newer)
    said = [line for group in exchanges(turns) for line in lines_of(group)]
    left = {turn.id for turn, line in said if line.rpartition("\n")[2] in ends}
    covers = tuple(name for name in memory.covers if name not in left)
    return replace(memory, text=text, covers=covers, why=TOO_LONG, version=0, created_at=None)


def written(
    text: str,
    ended: bool,
    *,
    rules: Memory,
    before: Memory | None,
    turns: Sequence[Turn],
    kind: MemoryKind,
    room: int,
) -> Memory | Refused:
    """What a model wrote to stand for the same turns as `rules`, or why it is refused.

    Facts are added to those of `before`; a summary replaces it. What a person wrote into it stays, in front.

    Args:
        turns: that the model read: the kept ones, too, for it writes of them all.
    """
    said = text.strip()
    edited = before is not None and before.edited_by == "user"
    if refused := _refusal(said, ended, before=None if edited else before, turns=turns, kind=kind):
        return Refused(refused)
    if before is not None and (edited or kind == before.kind == "facts"):
        said = _added(before.text.strip(), said)
    while kind == "facts" and not edited and tokens_of_text(said, turns) > room and "\n" in said:
        said = said.partition("\n")[2]  # bounded: the oldest fact leaves, and can still be retrieved
    if tokens_of_text(said, turns) > room:
        return Refused(f"it takes more than {room} tokens")
    covers = tuple(turn.id for turn in turns if not turn.excluded)
    return replace(rules, kind=kind, text=said, covers=covers, edited_by="user" if edited else "model")


def _refusal(
    said: str, ended: bool, *, before: Memory | None, turns: Sequence[Turn], kind: MemoryKind
) -> str:
    words = [word.lower() for word in _WORD.findall(said)]
    if len(said) < _SHORTEST or len(words) < 2:
        return "it is empty"
    if not ended:
        return "it runs on"
    fours = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if sum(count - 1 for count in fours.values()) * 3 > max(len(words), 24):
        return "it repeats itself"
    if any(prompt[:60] in said for prompt in (SUMMARY_PROMPT, FACTS_PROMPT)):
        return "it repeats the instruction"
    told = {m for turn in turns if turn.role == "user" for m in _TELLING.findall(turn.text)} - {"I"}
    if len(told) >= 4 and not any(name in said for name in told):
        return "it names nothing of what was said"
    if kind == "summary" and before and before.kind == "summary" and len(said) * 4 < len(before.text):
        return "it loses most of the summary before"
    return ""


def _added(before: str, new: str) -> str:
    lines = [before] if before else []
    known = {_plain(line) for line in before.splitlines()}
    for line in new.splitlines():
        if (plain := _plain(line)) and plain not in known:
            lines.append(line.strip())
            known.add(plain)
    return "\n".join(lines)


def _plain(line: str) -> str:
    return " ".join(_WORD.findall(line.lower()))
