"""Which answers run where: a worker never gives its engine more than it has slots, because what waits inside an
engine cannot be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from rallychat.errors import Busy, InvalidRequest

PATIENCE = 30.0
"""Seconds a request waits for a slot whose client has left; prefilling one batch of a big model takes a while."""


@dataclass(slots=True)
class Slot:
    """One slot of an engine, and the tokens its cache was last seen to hold.

    `salt` says whose they are. `foreign`: its cache may hold some of another salt, so none may be reused.
    """

    index: int
    held: list[int] = field(default_factory=list)
    busy: bool = False
    salt: str | None = None
    foreign: bool = False


def shared_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C, so halving beats a loop over tokens
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def reusable(held: list[int], prompt: list[int], *, rollback: bool) -> int:
    """How many tokens of a prompt a cache spares: what both begin with, or nothing if a tail would have to go first."""
    shared = shared_prefix(held, prompt)
    return shared if rollback or shared == len(held) else 0


class Slots:
    """The slots of one engine."""

    def __init__(self, count: int, *, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._slots = [Slot(index) for index in range(count)]
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        """Slots that are not answering."""
        return sum(not slot.busy for slot in self._slots)

    async def reserve(self, prompt: list[int], wanted: int | None, *, salt: str | None = None) -> Slot:
        """As `take`, but patient: a client that has just left frees its slot within one engine step.

        Raises:
            InvalidRequest: there is no such slot.
            Busy: it, or every slot, is answering and goes on doing so.
        """
        await self._one_free(wanted)
        return self.take(prompt, wanted, salt=salt)

    async def hold(self, index: int) -> Slot:
        """One slot with what it holds, once nobody answers in it; `release` gives it back.

        Raises:
            InvalidRequest: there is no such slot. Busy: it is answering and goes on doing so.
        """
        await self._one_free(index)
        (slot,) = self._candidates(index)
        if slot.busy:
            raise Busy(f"Slot {index} is answering.", retry_after=1.0)
        slot.busy = True
        return slot

    async def _one_free(self, wanted: int | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while all(slot.busy for slot in self._candidates(wanted)):
                    self._freed.clear()
                    await self._freed.wait()

    def take(self, prompt: list[int], wanted: int | None, *, salt: str | None = None) -> Slot:
        """The wanted slot, or the free one whose cache shares the longest prefix with the prompt.

        What a slot holds under another salt counts as nothing: how soon an answer begins tells nobody what
        others have said.

        Raises:
            InvalidRequest: there is no such slot.
            Busy: it, or every slot, is answering.
        """
        free = [slot for slot in self._candidates(wanted) if not slot.busy]
        if not free:
            what = "All slots are" if wanted is None else f"Slot {wanted} is"
            raise Busy(f"{what} answering.", retry_after=1.0)

        # Among equals the one that holds least: another conversation's cache is worth keeping.
        def worth(slot: Slot) -> tuple[int, int]:
            return shared_prefix(slot.held, prompt) if slot.salt == salt else 0, -len(slot.held)

        best = max(free, key=worth)
        best.busy = True
        best.foreign = best.foreign or best.salt != salt
        if best.foreign:
            best.held, best.salt = [], salt
        return best

    def _candidates(self, wanted: int | None) -> list[Slot]:
        if wanted is not None and not 0 <= wanted < len(self._slots):
            raise InvalidRequest(f"There is no slot {wanted}; there are {len(self._slots)}.", param="slot")
        return self._slots if wanted is None else [self._slots[wanted]]

    def release(self, slot: Slot, held: list[int], *, begun: bool = True) -> None:
        """Give a slot back; `held` is what its cache now holds.

        Not `begun`: the engine has told nothing of this answer, so what another has said may still be in there.
        """
        slot.held = held
        slot.foreign = slot.foreign and not begun
        slot.busy = False
        self._freed.set()
