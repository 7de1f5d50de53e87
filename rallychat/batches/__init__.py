"""Offline generation: many lines in, as many lines out, in their order, whatever happens on the way."""

from __future__ import annotations

from rallychat.batches.journal import Journal, Stream
from rallychat.batches.lines import Line, Survey, read_lines, survey
from rallychat.batches.work import AHEAD, Outcome, Progress, work

__all__ = [
    "AHEAD",
    "Journal",
    "Line",
    "Outcome",
    "Progress",
    "Stream",
    "Survey",
    "read_lines",
    "survey",
    "work",
]
