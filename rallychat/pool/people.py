"""Whose answer begins next, whose makes way, and whose cache is left alone: the slots as people share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rallychat.pool.affinity import UNUSED, Asked, Priority, Slot, until_expendable
from rallychat.pool.fairness import Shares, order, to_pause
from rallychat.pool.line import Waiting, claim_of

THOUGHT = 10.0
"""Seconds that somebody's cache is left to them by a conversation of who has more than a fair share."""


def in_turn(
    line: Sequence[Waiting], slots: Sequence[Slot], shares: Shares, *, tokens: float
) -> list[Waiting]:
    """Answers of one priority, in the order of their users' turns.

    Args:
        tokens: of an answer, on average.
    """
    if len(line) < 2:
        return list(line)
    kind = line[0].asked.priority
    turns = order(
        [waiting.claim() for waiting in line],
        Counter(slot.user for slot in slots if slot.holder is kind and not slot.leaving),
        shares.standings(),
        slots=len(slots),
        cost=tokens,
    )
    return [line[index] for index in turns]


def to_make_way(people: Sequence[Waiting], slots: Sequence[Slot], shares: Shares) -> list[Slot]:
    """Answers of people that have more than their share, one for each who waits, has less and finds no slot."""
    serving = [slot for slot in slots if slot.holder is Priority.CHAT]
    room = len(slots) - sum(not slot.leaving for slot in serving)
    staying = [slot for slot in serving if not slot.leaving]
    held, standings = Counter(slot.user for slot in staying), shares.standings()
    leaving: list[Slot] = []
    for waiting in people:
        user = waiting.asked.user
        if room:
            room -= 1
        else:
            claims = [claim_of(slot.asked, slot.said) for slot in staying if slot.asked]
            found = to_pause(waiting.claim(), claims, held, standings)
            if found is None:
                continue
            leaving.append(slot := staying.pop(found))
            held[slot.user] -= 1
        held[user] += 1
    return leaving


def unwatched_to_leave(people: int, slots: Sequence[Slot]) -> list[Slot]:
    """Answers that nobody watches, the newest first, where so many people find no slot."""
    patient = [slot for slot in slots if slot.holder is Priority.PATIENT and not slot.leaving]
    short = people - sum(not slot.busy or slot.leaving for slot in slots)
    patient.sort(key=lambda slot: slot.asked.since if slot.asked else 0.0)
    return patient[max(0, len(patient) - max(0, short)) :]


def harmless(people: int, slots: Sequence[Slot], room: int, *, pressed: bool) -> list[Slot]:
    """Lines of a batch that go on beside people: those that have said most, as many as slow nobody.

    Args:
        people: who wait for a slot.
        room: how many slow nobody.
        pressed: somebody waits for a first token; who still reads would make that later.
    """
    lines = [slot for slot in slots if slot.holder is Priority.BATCH and (slot.said or not pressed)]
    lines.sort(key=lambda slot: slot.said, reverse=True)
    left = len(slots) - people - sum(_answers(slot) and not slot.leaving for slot in slots)
    return lines[: max(0, min(room, left))]


def spared(
    asked: Asked, free: Sequence[Slot], slots: Sequence[Slot], others: Sequence[str]
) -> dict[int, float]:
    """Seconds for which `asked` leaves each of the free slots alone, by their index.

    Who has a fair share of the slots takes any. Who has more takes none in which another's cache was used a moment ago:
    it would be read anew when that one has thought about the answer, and so would this when it has made way again.

    Args:
        others: users who wait.
    """
    users = {asked.user, *others} | {slot.user for slot in slots if _here(slot)}
    holding = sum(_answers(slot) and slot.user == asked.user and not slot.leaving for slot in slots)
    if holding < max(1, len(slots) // len(users)):
        return {}
    early = UNUSED - (THOUGHT if asked.session else UNUSED)
    left = {slot.index: until_expendable(slot) - early for slot in free if slot.user != asked.user}
    return {index: seconds for index, seconds in left.items() if seconds > 0}


def _answers(slot: Slot) -> bool:
    return slot.holder is not None and slot.holder.foreground


def _here(slot: Slot) -> bool:
    """Whose slot this is is answered, or was a moment ago."""
    return _answers(slot) or until_expendable(slot) > 0
