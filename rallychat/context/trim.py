"""The deterministic trim: what leaves a prompt that would not fit. Needs no model, so nobody waits."""

from __future__ import annotations

from collections.abc import Sequence

LOW_MARK = 0.5
"""Share of the budget left after a trim: for many turns the prompt then only grows, and stays cached."""


def answer_reserve(window: int, max_tokens: int | None) -> int:
    """Tokens of the window kept free for the answer: what was asked, at most half; a quarter if nothing was."""
    return min(max_tokens, window // 2) if max_tokens else min(1024, window // 4)


def cut(roles: Sequence[str], tokens: Sequence[int], *, fixed: int, budget: int) -> int:
    """Index of the first message to keep, so that `fixed` + the rest is within `LOW_MARK` of the budget.

    Cuts only in front of a user's message; the last user's message always stays.

    Args:
        roles, tokens: of each message, oldest first.
        fixed: tokens that always stay (the system prompt).
        budget: tokens the prompt may have.
    """
    starts = [index for index, role in enumerate(roles) if role == "user"]
    if not starts:
        return 0
    rest = sum(tokens)
    at = 0
    for start in starts:
        rest -= sum(tokens[at:start])
        at = start
        if fixed + rest <= budget * LOW_MARK:
            return start
    return starts[-1]
