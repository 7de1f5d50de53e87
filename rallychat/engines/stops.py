"""Finds stop strings in text that arrives in pieces. Text that may still become one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One answer's stop strings.

    Feed it text as it comes; what it returns may be shown. Where texts arrive split never changes the outcome.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text that is certain not to belong to a stop string. Nothing more comes once `found` is set."""
        if not self._stops:
            return text
        if self.found:
            return ""
        pending = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := pending.find(stop)) >= 0]
        if found:  # the one that is complete first wins: any other rule depends on where the text was split
            self.found, self._held = True, ""
            return pending[: min(found)[1]]
        safe = len(pending) - self._undecided(pending)
        self._held = pending[safe:]
        return pending[:safe]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, pending: str) -> int:
        """Length of the longest end of `pending` that a stop string begins with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(pending)), 0, -1):
            end = pending[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
