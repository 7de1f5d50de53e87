"""Options that several commands share, and how flags become settings. Imports nothing heavy."""

from __future__ import annotations

import sys
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rallychat.settings import Settings

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Id, name, file, folder or hub id: owner/repo, owner/repo:file.gguf."
    ),
]
AnyModel = Annotated[
    str, typer.Argument(help="Id, name, file, folder or hub id: owner/repo, owner/repo:file.gguf.")
]
FamilyName = Annotated[
    str | None, typer.Option(help="Prompt format of a model that does not say it itself.", show_default=False)
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of weights, conversations and logs.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL database, as postgresql://USER@HOST/NAME (SQLite in the data folder).",
        show_default=False,
    ),
]
Slots = Annotated[int | None, typer.Option(min=1, max=256, help="Answers generated at the same time (4).")]
Window = Annotated[
    int | None, typer.Option(min=256, help="Context window in tokens (the model's, at most 8192).")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine (physical cores).")]
Offline = Annotated[
    bool,
    typer.Option("--offline", "--local-files-only", help="Never ask the network; use what is on disk."),
]
GenConfig = Annotated[
    str | None,
    typer.Option("--gen-config-path", help="YAML file of the generation config for answers."),
]
SummaryGenConfig = Annotated[
    str | None,
    typer.Option(
        "--gen-config-summarization-path",
        help="YAML file of the generation config for summaries of the conversation.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


MAY_BE_EMPTY = frozenset(
    {"--base-url", "--ft-ckpt-url", "--gen-config-path", "--gen-config-summarization-path"}
)
"""Flags that are often given as `--flag $VARIABLE`, of which the shell leaves no word where the variable is empty."""


class Forgiving(TyperCommand):
    """A command whose flags in `MAY_BE_EMPTY` may stand without a value: then they were not given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does, with an empty value where there is none."""
        filled: list[str] = []
        for arg, following in zip_longest(args, args[1:], fillvalue="--"):
            filled.append(arg)
            if arg in MAY_BE_EMPTY and following.startswith("-"):
                filled.append("")
        return super().parse_args(ctx, filled)


def settings_from(**flags: Any) -> Settings:
    """Settings of every source; a flag that is None, or an empty text, was not given.

    Raises:
        SettingsError: a value is wrong; the message names it.
    """
    from rallychat.settings import Settings

    return Settings.load(**{name: value for name, value in flags.items() if value != ""})


_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def printable(text: str) -> str:
    """What others wrote, as a terminal may be given it: no control character of it commands the terminal."""
    return text.translate(_CONTROLS)


def literal(text: str) -> str:
    """Printable, and as Rich's markup: nothing in it is a tag."""
    from rich.markup import escape

    return escape(printable(text))


def complain(message: str, hint: str = "") -> None:
    """One sentence in red on stderr, and the next step below it."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{printable(message)}{plain}", file=sys.stderr)
    if hint:
        print(f"  {printable(hint)}", file=sys.stderr)
