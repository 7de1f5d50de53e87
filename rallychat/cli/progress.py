"""A download as a bar in the terminal: share, size, speed and time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rallychat import sources
from rallychat.catalog import Model
from rallychat.cli.options import printable
from rallychat.settings import Settings

if TYPE_CHECKING:
    from rallychat.sources import Downloads

STAGES = {"download": "Downloading", "unpack": "Unpacking", "verify": "Verifying"}


def bar(console: Console) -> Progress:
    """The bar itself; on something that is no terminal it prints nothing until it ends."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


async def fetch_with_bar(
    downloads: Downloads, model: Model, settings: Settings, console: Console, *, force: bool = False
) -> None:
    """Fetch `model` if it is not here (`force`: even then), joining a download that already runs.

    Raises:
        SourceError: it could not be fetched.
    """
    if sources.is_here(model, settings) and not force:
        return
    name = printable(model.name)
    if not console.is_terminal:
        console.print(f"Downloading {name} ...", markup=False)
    with bar(console) as progress:
        task = progress.add_task(f"Downloading {name}", total=None)
        async for at in downloads.watch(model, force=force):
            progress.update(
                task,
                completed=at.done,
                total=at.total,
                description=f"{STAGES.get(at.stage, at.stage)} {name}",
            )
