"""Turns what pydantic found wrong with a body into one sentence that names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rallychat.api.responses.requests import RESPONSES_ACCEPTED_ONLY
from rallychat.api.schemas import ACCEPTED_ONLY, ROLES_REFUSED, TAGS

_SAID: Mapping[str, str] = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "none_required": "must be null",
    "string_too_long": "must not be longer than {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "too_long": "must not have more than {max_length} items",
    "too_short": "must not be empty",
    "union_tag_not_found": "must be an object with a 'role'",
}
"""Pydantic's error types in our words; none of them repeats what the caller wrote."""

_MOST = 300
"""Characters of a caller's own words that are said back."""


def first_problem(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str, str | None]:
    """Message, code and parameter of the first of pydantic's errors."""
    error = errors[0]
    kind, loc = str(error["type"]), tuple(error["loc"])[1:]
    if kind == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}.", "invalid_json", None
    name = _dotted(loc, own=kind == "extra_forbidden")
    if not name:
        return "The body must be a JSON object.", "invalid_body", None
    if kind == "missing":
        return f"'{name}' is missing.", "missing_required_parameter", name
    if kind == "extra_forbidden":
        return f"'{name}' is not a parameter of this route.", "unknown_parameter", name
    if kind != "bool_type" and (only := _ONLY.get(str(loc[0]))) is not None:
        return f"'{loc[0]}' is not supported: {only}.", "unsupported_parameter", str(loc[0])
    if kind == "union_tag_invalid" and loc[0] == "messages":
        return _role(error, f"{name}.role")
    if kind == "union_tag_invalid":
        return f"'{name}': '{_clipped(_tag(error))}' is not supported: {_ITEMS}.", "unsupported_value", name
    if kind == "too_long" and loc[0] == "prompt":
        return (
            "'prompt' must be one prompt; several in one request are not supported.",
            "unsupported_value",
            name,
        )
    if kind == "literal_error" and loc[-1] == "type" and isinstance(part := error["input"], str):
        return f"'{name}': '{_clipped(part)}' parts are not supported, only text.", "unsupported_value", name
    return f"'{name}' {_said(error)}.", "invalid_value", name


_ONLY = {**ACCEPTED_ONLY, **RESPONSES_ACCEPTED_ONLY}
_ITEMS = "items are messages of 'user', 'assistant', 'system' and 'developer', and 'reasoning'"


def _tag(error: Mapping[str, Any]) -> str:
    return str(error["ctx"]["tag"]).strip("<>")


def _role(error: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    role = _tag(error)
    if role in ROLES_REFUSED:
        return f"'{name}': '{role}' is not supported: {ROLES_REFUSED[role]}.", "unsupported_value", name
    return f"'{name}' must be 'system', 'developer', 'user' or 'assistant'.", "invalid_value", name


def _dotted(loc: Sequence[Any], *, own: bool = False) -> str:
    """("messages", 0, "<user>", "content", "<text>") -> "messages[0].content".

    With `own` the last step is a key of the caller's, whatever it looks like.
    """
    name = ""
    for at, step in enumerate(loc, start=1):
        if isinstance(step, int):
            name += f"[{step}]"
        elif step not in TAGS or (own and at == len(loc)):
            name += f".{step}" if name else step
    return _clipped(name)


def _said(error: Mapping[str, Any]) -> str:
    said = _SAID.get(str(error["type"]))
    if said is not None:
        return said.format(**error.get("ctx", {}))
    return _clipped(str(error["msg"]).removeprefix("Input ").replace("should be", "must be"))


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST else text[:_MOST] + "…"
