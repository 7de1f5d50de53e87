"""What a batch leaves: its outcomes, sorted into a file of answers and one of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from rallychat.batches.lines import lines_of
from rallychat.batches.work import Outcome

EXPIRED: Final = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
"""What OpenAI says of a line that nobody came to."""


@dataclass(slots=True)
class Totals:
    """What the outcomes are, counted."""

    completed: int = 0
    failed: int = 0
    usage: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 0
        )
    )


def sort(
    source: Path,
    written: Path,
    count: int,
    held: Mapping[int, Outcome],
    answers: BinaryIO,
    errors: BinaryIO,
    *,
    expired: bool,
    longest: int,
) -> Totals:
    """Writes each known outcome into one of the two files, in the order of the lines.

    Args:
        source: the input.
        written: outcomes of its first `count` lines.
        held: outcomes of later ones, by index.
        expired: say of each line without an outcome that its time is over; else it is left out.
    """
    totals = Totals()
    with source.open("rb") as asked, written.open("rb") as done:
        for index, line in enumerate(lines_of(asked, longest)):
            if index < count:
                text = done.readline().rstrip(b"\n")
            elif (outcome := held.get(index)) is not None:
                text = outcome.text
            elif expired:
                text = _never_run(line.text, index)
            else:
                continue
            said = orjson.loads(text)
            response = said["response"]
            good = response is not None and response["status_code"] == 200
            (answers if good else errors).write(text + b"\n")
            totals.completed += good
            totals.failed += not good
            if good:
                _add(totals.usage, response["body"].get("usage") or {})
    return totals


def _never_run(line: bytes | None, index: int) -> bytes:
    name = orjson.loads(line or b"{}").get("custom_id")
    said = {"id": f"batch_req_{index}", "custom_id": name, "response": None, "error": EXPIRED}
    return orjson.dumps(said)


def _add(usage: dict[str, int], of: Mapping[str, Any]) -> None:
    """Adds up what both of OpenAI's kinds of usage objects say."""
    told = _details(of, "prompt_tokens_details") | _details(of, "input_tokens_details")
    spent = _details(of, "completion_tokens_details") | _details(of, "output_tokens_details")
    usage["input_tokens"] += of.get("prompt_tokens") or of.get("input_tokens") or 0
    usage["output_tokens"] += of.get("completion_tokens") or of.get("output_tokens") or 0
    usage["cached_tokens"] += told.get("cached_tokens") or 0
    usage["reasoning_tokens"] += spent.get("reasoning_tokens") or 0


def _details(of: Mapping[str, Any], name: str) -> dict[str, int]:
    return dict(of.get(name) or {})
