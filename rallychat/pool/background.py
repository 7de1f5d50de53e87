"""What is nobody's turn: which of it goes on while nobody is answered, and what makes way for what."""

from __future__ import annotations

from collections.abc import Sequence

from rallychat.pool.affinity import Slot
from rallychat.pool.line import Waiting

PREPARED = 8
"""One slot of so many may be busy with preparing something: an engine step is as long as all that is in it."""
PASSED = 16
"""Times that others of the background may go first before one that waits is next."""


def full(slots: Sequence[Slot]) -> bool:
    """As much is prepared as may be at a time."""
    return sum(slot.preparing for slot in slots) >= max(1, len(slots) // PREPARED)


def following(line: Sequence[Waiting], slots: Sequence[Slot]) -> Waiting | None:
    """The most urgent of those that may go on now; but who was passed often enough is next."""
    if full(slots):
        line = [waiting for waiting in line if not waiting.asked.priority.preparing]
    patient = [waiting for waiting in line if waiting.passed >= PASSED]
    if patient:
        return min(patient, key=lambda waiting: waiting.arrival)
    return min(line, key=lambda waiting: (waiting.asked.urgency, waiting.arrival), default=None)


def to_leave(line: Sequence[Waiting], slots: Sequence[Slot]) -> Slot | None:
    """Who has a slot and makes way for something else of the background that waits and is more urgent."""
    preparing = [slot for slot in slots if slot.preparing and not slot.leaving]
    urgent = min((w.asked.urgency for w in line if w.asked.priority.preparing), default=None)
    if urgent is not None and preparing and full(slots):
        last = max(preparing, key=lambda slot: slot.urgency)
        return last if last.urgency > urgent else None
    if not line or any(not slot.busy or slot.leaving for slot in slots):
        return None
    last = max(slots, key=lambda slot: (slot.holder or 0, slot.index))
    return last if (last.holder or 0) > min(line).priority else None
