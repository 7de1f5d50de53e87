"""Caches that had to leave their slots, kept outside the engine until somebody comes back for them.

To bring one back takes milliseconds; to read its prompt again takes a second a thousand tokens, or several.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from rallychat.engines.backend import Backend
from rallychat.engines.slots import Slots, shared_prefix
from rallychat.errors import EngineRefused, NotFound

KEPT = 3600.0
"""Seconds after which a copy is deleted that nobody came back for."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """What a slot held, whose it was, the bytes it takes, and when it was made, by the monotonic clock."""

    held: list[int]
    salt: str | None
    size: int
    made: float


class Offloaded:
    """The copies of one worker, oldest first.

    Args:
        backend: makes and reads them.
        slots: where they come from.
        most: bytes they may take together; the oldest go first.
    """

    def __init__(self, backend: Backend, slots: Slots, *, most: int) -> None:
        self._backend = backend
        self._slots = slots
        self._most = most
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._making: set[str] = set()
        self._aging: asyncio.TimerHandle | None = None

    async def save(self, index: int, name: str, prompt: list[int]) -> tuple[list[str], float]:
        """Copies what a slot holds: the names of those that had to go for it, which may be this one, and milliseconds.

        Args:
            prompt: what it is known to hold.

        Raises:
            EngineRefused: the engine cannot, there is no room, another prompt is there by now, or the copy was
                discarded before it was made.
        """
        if not (self._backend.info.offload and self._most):
            raise EngineRefused("This engine keeps no caches outside its slots.")
        self.discard([name])
        self._making.add(name)
        try:
            slot = await self._slots.hold(index)
            try:
                shared = shared_prefix(slot.held, prompt)
                if slot.foreign or shared < min(len(slot.held), len(prompt)):
                    raise EngineRefused(f"Slot {index} holds something else by now.")
                made = await self._backend.save(slot, name)
            finally:
                self._slots.release(slot, slot.held, begun=False)
            if name not in self._making:
                self._backend.discard(name)
                raise EngineRefused("This copy was discarded while it was made.")
        finally:
            self._making.discard(name)
        self._copies[name] = _Copy(slot.held, slot.salt, made.size, time.monotonic())
        return self._make_room(), made.ms

    async def restore(self, index: int, name: str, *, salt: str | None) -> float:
        """Brings a copy back into a slot; the milliseconds that took.

        Raises:
            NotFound: there is no such copy of this salt's.
            EngineRefused: it cannot be read; the slot holds nothing then.
        """
        copy = self._copies.get(name)
        if copy is None or copy.salt != salt:
            raise NotFound("copy", name)
        slot = await self._slots.hold(index)
        held: list[int] = []
        slot.salt, slot.foreign = salt, True  # until it is known what it holds
        begun = False
        try:
            took = await self._backend.restore(slot, name)
            held, begun = copy.held, True
        except EngineRefused:
            begun = True
            self.discard([name])
            raise
        finally:
            self._slots.release(slot, held, begun=begun)
        return took

    def discard(self, names: Iterable[str]) -> None:
        """Deletes copies, as far as they are there; those that are being made, once they are."""
        for name in names:
            self._making.discard(name)
            if self._copies.pop(name, None) is not None:
                self._backend.discard(name)

    def _make_room(self) -> list[str]:
        gone = []
        now, size = time.monotonic(), sum(copy.size for copy in self._copies.values())
        for name, copy in self._copies.items():
            if size <= self._most and now - copy.made < KEPT:
                break
            size -= copy.size
            gone.append(name)
        self.discard(gone)
        self._look_again()
        return gone

    def _look_again(self) -> None:
        """When the oldest one's time is over: what was deleted elsewhere leaves nothing here for longer."""
        if self._aging is not None:
            self._aging.cancel()
        oldest = next(iter(self._copies.values()), None)
        if oldest is not None:
            left = oldest.made + KEPT - time.monotonic()
            self._aging = asyncio.get_running_loop().call_later(max(0.0, left), self._make_room)
