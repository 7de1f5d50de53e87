"""Offline generation: many lines in, as many lines out, in their order, whatever happens on the way."""

from __future__ import annotations

from rallychat.batches.checking import ENDPOINTS, Checked, Fault, check
from rallychat.batches.journal import Journal, Stream, WriteError
from rallychat.batches.lines import Line, Survey, read_lines, survey
from rallychat.batches.results import sort
from rallychat.batches.runner import BatchRunner
from rallychat.batches.turns import Turns
from rallychat.batches.work import AHEAD, Outcome, Progress, work

__all__ = [
    "AHEAD",
    "ENDPOINTS",
    "BatchRunner",
    "Checked",
    "Fault",
    "Journal",
    "Line",
    "Outcome",
    "Progress",
    "Stream",
    "Survey",
    "Turns",
    "WriteError",
    "check",
    "read_lines",
    "sort",
    "survey",
    "work",
]
