"""`rallychat backup` and `rallychat restore`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rallychat.cli.whose import noted
from rallychat.settings import Settings


async def backup(settings: Settings, file: Path) -> int:
    """Write everything but weights into a file; a server may go on meanwhile."""
    from rallychat.store import ConversationStore

    async with ConversationStore.open(settings) as store:
        rows = await store.backups.write(file)
        await noted(store, "backup", file.name)
        Console(stderr=True).print(f"{rows:,} rows of {store.place} are in {file}.", markup=False)
    return 0


async def restore(settings: Settings, file: Path) -> int:
    """Bring everything of a backup back, into an empty place."""
    from rallychat.store import ConversationStore

    async with ConversationStore.open(settings) as store:
        rows = await store.backups.restore(file)
        await store.interrupt_orphans()  # answers that were being made when it was written
        await noted(store, "restore", file.name)
        Console(stderr=True).print(f"{rows:,} rows are in {store.place}.", markup=False)
    return 0
