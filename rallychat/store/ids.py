"""Ids that sort by age: 13 hex digits of microseconds since 1970, then 10 random ones."""

from __future__ import annotations

import secrets
import time

_CLOCK_DIGITS = 13


def new_id(prefix: str, *, after: str | None = None) -> str:
    """A fresh id such as `msg_0643…`; greater than `after` even where the clock was set back.

    The tree relies on it: a child's id is greater than its parent's, so a subtree's greatest id is its
    newest leaf.
    """
    micros = time.time_ns() // 1000
    if after is not None:
        micros = max(micros, int(after.partition("_")[2][:_CLOCK_DIGITS], 16) + 1)
    return f"{prefix}_{micros:0{_CLOCK_DIGITS}x}{secrets.token_hex(5)}"
