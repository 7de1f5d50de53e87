"""Pages of a list: which part of it is asked for, and how it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from rallychat.api.responses.items import age_of

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
After = Annotated[str | None, Query(description="The id after which to go on.")]
Order = Annotated[Literal["asc", "desc"], Query(description="Oldest or newest first.")]


def page(items: Sequence[dict[str, Any]], *, after: str | None, limit: int, order: str) -> dict[str, Any]:
    """One page of `items`, which are given oldest first. Where `after` is gone it goes on from where that stood.

    Raises:
        NotFound: no item can be called `after`.
    """
    ordered = list(items if order == "asc" else reversed(items))
    start = 0
    if after is not None:
        start = next((at for at, item in enumerate(ordered, start=1) if item["id"] == after), 0)
        if not start:
            stood = age_of(after)
            older = sum(age_of(item["id"]) < stood for item in items)
            start = older if order == "asc" else len(items) - older
    return listed(ordered[start : start + limit], more=len(ordered) > start + limit)


def listed(data: Sequence[dict[str, Any]], *, more: bool = False) -> dict[str, Any]:
    """OpenAI's list object."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else ("", "")
    return {"object": "list", "data": list(data), "first_id": first, "last_id": last, "has_more": more}
