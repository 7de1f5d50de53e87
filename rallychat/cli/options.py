"""Options that several commands share, and how flags become settings. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rallychat.settings import Settings

ModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Id, name, GGUF file or folder, or owner/repo:file.gguf."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of weights, conversations and logs.", show_default=False),
]
Slots = Annotated[int | None, typer.Option(min=1, max=256, help="Answers generated at the same time (4).")]
Window = Annotated[
    int | None, typer.Option(min=256, help="Context window in tokens (the model's, at most 8192).")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine (physical cores).")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the network; use what is on disk.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def settings_from(**flags: Any) -> Settings:
    """Settings of every source; a flag that is None was not given.

    Raises:
        SettingsError: a value is wrong; the message names it.
    """
    from rallychat.settings import Settings

    return Settings.load(**flags)


def complain(message: str, hint: str = "") -> None:
    """One sentence in red on stderr, and the next step below it."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{message}{plain}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
