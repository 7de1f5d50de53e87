"""What one more answer costs those that are being written: how long a token takes, by how many are written at a time.

On a processor each answer slows the others; a GPU that writes four could write forty in the same time. Nobody can
say beforehand where an engine stands, so it is measured: at first by whatever people do, then by trying one more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

HARM = 1.03
"""How much longer people's tokens may take beside a batch than without it."""
ENOUGH = 64
"""Arrivals of text before anything is said of a number of answers."""
FRESH = 300.0
"""Seconds after which it is to be measured again."""
MOST = 512
"""Arrivals of which the mean is taken; older ones weigh less and less."""
ODD = 5.0
"""Times as long as the mean that an arrival may take and count for: a process may have stood still."""


@dataclass(slots=True)
class _Pace:
    seconds: float
    at: float
    count: int = 1


class Strain:
    """Seconds that a token takes, by the number of answers that are made at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paces: dict[int, _Pace] = {}

    def said(self, answers: int, seconds: float) -> None:
        """A token took so long while so many answers were made, this one among them."""
        now, pace = self._clock(), self._paces.get(answers)
        if pace is None or now - pace.at > FRESH:
            self._paces[answers] = _Pace(seconds, now)
            return
        pace.count = min(MOST, pace.count + 1)
        pace.seconds += (min(seconds, ODD * pace.seconds) - pace.seconds) / pace.count
        pace.at = now

    def room(self, people: int, most: int) -> int:
        """How many more answers may be made beside those of so many people, at most `most`.

        One more than is known to harm nobody: that is how it becomes known. It is not tried where the last one that is
        known of did harm, a person's own answer, say.
        """
        alone = self._known(people)
        if alone is None:
            return 0
        fewer, before = self._known(people - 1) or alone, alone
        for more in range(1, most + 1):
            beside = self._known(people + more)
            if beside is None:
                return more - (before > fewer * HARM)
            if beside > alone * HARM:
                return more - 1
            fewer, before = before, beside
        return most

    def _known(self, answers: int) -> float | None:
        pace = self._paces.get(answers)
        if pace is None or pace.count < ENOUGH or self._clock() - pace.at > FRESH:
            return None
        return pace.seconds
