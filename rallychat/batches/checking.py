"""Whether a file can be a batch, before any of it is run: OpenAI's lines, one model, names that occur once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final

import orjson

from rallychat.batches.lines import Line, lines_of

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MOST_FAULTS: Final = 100
"""After which nothing more is looked for."""
LONGEST_NAME: Final = 512


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in OpenAI's words; `line` counts from 1, None where it is the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it is stored and answered."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file is. `model` is None where no line names one; with faults it is no batch."""

    lines: int
    model: str | None
    faults: tuple[Fault, ...] = ()


def check(stream: BinaryIO, *, endpoint: str, most: int, longest: int) -> Checked:
    """Reads the file once.

    Args:
        endpoint: where every line must lead.
        most: lines it may have.
        longest: bytes of a line beyond which it is refused.
    """
    faults: list[Fault] = []
    names: set[str] = set()
    models: set[str | None] = set()
    count = 0
    for line in lines_of(stream, longest):
        count += 1
        if count > most:
            faults.append(Fault("too_many_requests", f"The file has more than {most} lines."))
        elif (fault := _fault(line, endpoint, longest, names, models)) is not None:
            faults.append(fault)
        if count > most or len(faults) >= MOST_FAULTS:
            break
    if not count:
        faults.append(Fault("empty_file", "The file has no lines."))
    return Checked(count, next(iter(models), None), tuple(faults))


def _fault(line: Line, endpoint: str, longest: int, names: set[str], models: set[str | None]) -> Fault | None:
    def wrong(code: str, message: str, param: str | None = None) -> Fault:
        return Fault(code, message, line.number, param)

    if line.text is None:
        return wrong("request_too_large", f"The line is longer than {longest} bytes.")
    try:
        value = orjson.loads(line.text)
    except orjson.JSONDecodeError:
        return wrong("invalid_json_line", "The line is not valid JSON.")
    if not isinstance(value, dict):
        return wrong("invalid_json_line", "The line must be a JSON object.")
    for name in ("custom_id", "method", "url", "body"):
        if name not in value:
            return wrong("missing_required_parameter", f"'{name}' is missing.", name)
    if unknown := next((name for name in value if name not in ("custom_id", "method", "url", "body")), None):
        return wrong("unknown_parameter", f"'{unknown[:300]}' is not known in such a line.", unknown[:300])
    return _content(value, wrong, endpoint, names, models)


def _content(
    value: Mapping[str, Any], wrong: Any, endpoint: str, names: set[str], models: set[str | None]
) -> Fault | None:
    name, body = value["custom_id"], value["body"]
    fault: Fault | None = None
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        fault = wrong(
            "invalid_custom_id", f"'custom_id' must be a text of 1 to {LONGEST_NAME} characters.", "custom_id"
        )
    elif name in names:
        fault = wrong("duplicate_custom_id", "Another line before it has the same 'custom_id'.", "custom_id")
    elif value["method"] != "POST":
        fault = wrong("invalid_method", "'method' must be 'POST'.", "method")
    elif value["url"] != endpoint:
        fault = wrong("invalid_url", f"'url' must be the batch's endpoint, '{endpoint}'.", "url")
    elif not isinstance(body, dict):
        fault = wrong("invalid_body", "'body' must be an object.", "body")
    elif not isinstance(body.get("model"), str | None):
        fault = wrong("invalid_value", "'model' must be a string.", "body.model")
    elif models and body.get("model") not in models:
        fault = wrong("mismatched_model", "All lines must name the same model.", "body.model")
    else:
        models.add(body.get("model"))
    if isinstance(name, str):
        names.add(name)
    return fault
