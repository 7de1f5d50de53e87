"""`rallychat bench`: runs a measurement and prints its rows as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rallychat.errors import InvalidRequest


def numbers(text: str, *, name: str) -> list[int]:
    """The positive numbers in "1,4,8".

    Raises:
        InvalidRequest: something else is in it.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise InvalidRequest(f"--{name} wants numbers like 1,4,8; it got '{text}'.", param=name) from exc
    if min(found) < 1:
        raise InvalidRequest(f"--{name} wants numbers above 0; it got '{text}'.", param=name)
    return found


def show(rows: Sequence[Any], *, as_json: bool, title: str = "") -> None:
    """Print rows (dataclasses or mappings, all alike): a table, or JSON on standard output."""
    plain = [_mapping(row) for row in rows]
    if as_json:
        print(json.dumps(plain, ensure_ascii=False, indent=2))
        return
    table = Table(*(name.replace("_", " ") for name in (plain[0] if plain else {})), title=title, box=None)
    for column in table.columns:
        column.justify = "right"
    for row in plain:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _mapping(row: Any) -> Mapping[str, Any]:
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else row


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
