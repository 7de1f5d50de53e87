"""What is in the trash, or in no list, or was stored for somebody who is erased by now, is gone after a while.

Knows the clock and the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from rallychat.errors import StoreError
from rallychat.store import ConversationStore

log = logging.getLogger(__name__)
EVERY = 3600.0
"""Seconds between two looks."""


@asynccontextmanager
async def emptying_trash(
    store: ConversationStore, *, days: float, response_days: float | None = None
) -> AsyncGenerator[None]:
    """Until the block ends, deletes for good what has been in anybody's trash for `days`, and what is nobody's.

    Args:
        response_days: after which chains of responses that stand in no list go too; None: never.
    """
    task = asyncio.create_task(_empty(store, days, response_days))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _empty(store: ConversationStore, days: float, response_days: float | None) -> None:
    while True:
        try:
            await store.library.empty(days=days, everybody=True)
            await store.belongings.sweep()
            if response_days is not None:
                await store.library.end_chains(days=response_days)
        except StoreError as exc:
            log.warning("the trash could not be emptied: %s", exc)
        await asyncio.sleep(EVERY)
