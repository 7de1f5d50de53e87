"""The `rallychat` command. Each command's module is imported when it is chosen; `--help` imports none of them."""

from __future__ import annotations

from rallychat.cli.commands import app, main

__all__ = ["app", "main"]
