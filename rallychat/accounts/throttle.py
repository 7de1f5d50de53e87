"""Failed logins make the next ones wait, longer each time, and are forgotten one by one as time passes.

In memory: a restart forgets, several processes add up.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from rallychat.errors import TooManyTries

FREE: Final[Mapping[str, int]] = {"pair": 5, "address": 20, "account": 50}
"""Tries before anybody waits: of one address at one account, of one address, at one account.

The last is high, for whoever knows a name could keep its owner out with it.
"""
LONGEST: Final = 900.0
"""Seconds a try waits at most, and after which one is forgotten: who mistypes now and then never adds up."""
MOST: Final = 10_000
"""Names remembered; those that failed longest ago are forgotten first."""


class Throttle:
    """Counts tries by kind and name. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def attempt(self, account: str, address: str) -> None:
        """Counts a try before its outcome is known: many at once are as many.

        Raises:
            TooManyTries: it comes too early, and is not counted.
        """
        names = _names(account, address)
        now = self._clock()
        wait = max(self._wait(name, now) for name in names)
        if wait > 0:
            raise TooManyTries("There were too many failed logins.", retry_after=wait, hint="try again later")
        for name in names:
            tries = self._counted(name, now)
            self._tries.pop(name, None)
            self._tries[name] = (tries + 1, now)
        while len(self._tries) > MOST:
            self._tries.popitem(last=False)

    def forgive(self, account: str, address: str) -> None:
        """It was the right password: nothing is held against this account and this address together.

        What this address did at other accounts stays, but for the try itself.
        """
        for name in _names(account, address):
            if name[0] == "pair":
                self._tries.pop(name, None)
                continue
            tries, at = self._tries.get(name, (0.0, 0.0))
            if tries > 1:
                self._tries[name] = (tries - 1, at)
            else:
                self._tries.pop(name, None)

    def _wait(self, name: tuple[str, str], now: float) -> float:
        over = math.ceil(self._counted(name, now)) - FREE[name[0]]
        last = self._tries[name][1] if over >= 0 else now
        return 0.0 if over < 0 else last + min(LONGEST, 2.0 ** min(over, 30)) - now

    def _counted(self, name: tuple[str, str], now: float) -> float:
        """Tries that are not forgotten yet."""
        tries, last = self._tries.get(name, (0.0, now))
        return max(0.0, tries - (now - last) / LONGEST)


def _names(account: str, address: str) -> tuple[tuple[str, str], ...]:
    if not address:  # it is not known who asks: one who guesses must not keep everybody out
        return (("account", account),)
    return ("pair", f"{address} {account}"), ("address", address), ("account", account)
