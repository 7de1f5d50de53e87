"""What is in the trash, or was stored for somebody who is erased by now, is gone for good after a while.

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
async def emptying_trash(store: ConversationStore, *, days: float) -> AsyncGenerator[None]:
    """Until the block ends, deletes for good what has been in anybody's trash for `days`, and what is nobody's."""
    task = asyncio.create_task(_empty(store, days))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _empty(store: ConversationStore, days: float) -> None:
    while True:
        try:
            await store.library.empty(days=days, everybody=True)
            await store.belongings.sweep()
        except StoreError as exc:
            log.warning("the trash could not be emptied: %s", exc)
        await asyncio.sleep(EVERY)
