"""Runs chat templates of strangers: an immutable sandbox with bounds on work and output.

Templates follow the field's convention (Hugging Face `chat_template`): Jinja with `messages`, `bos_token`,
`eos_token`, `add_generation_prompt`, `raise_exception`, `strftime_now`, `tojson`; ours may also use `memory`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError as JinjaTemplateError
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rallychat.errors import TemplateError

MAX_OUTPUT = 16 * 1024 * 1024
"""Characters a rendered prompt may have."""
MAX_LOOP = 200_000
"""Items all `range()` calls of one rendering may yield."""
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "translate"})


def run(source: str, **variables: Any) -> str:
    """What a template writes.

    Raises:
        TemplateError: it is no template, refuses its variables, or goes beyond its bounds.
    """
    parts: list[str] = []
    size = 0
    try:
        for part in compiled(source).generate(range=_bounded_range(), **variables):
            size += len(part)
            if size > MAX_OUTPUT:
                raise TemplateError(f"The chat template wrote more than {MAX_OUTPUT} characters.")
            parts.append(part)
    except SecurityError as exc:
        raise TemplateError(f"The chat template did something that is not allowed: {exc}.") from exc
    except (
        JinjaTemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as exc:
        raise TemplateError(f"The chat template refuses these messages: {exc}", param="messages") from exc
    except (RecursionError, MemoryError) as exc:
        raise TemplateError("The chat template goes beyond what is allowed.") from exc
    return "".join(parts)


@lru_cache(maxsize=64)
def compiled(source: str) -> Any:
    """The template, ready to run.

    Raises:
        TemplateError: it is not valid Jinja.
    """
    try:
        return _environment().from_string(source)
    except (JinjaTemplateError, RecursionError) as exc:
        raise TemplateError(f"The chat template is not valid: {exc}.") from exc


@lru_cache(maxsize=64)
def uses(source: str, variable: str) -> bool:
    """The template reads `variable`."""
    return variable in meta.find_undeclared_variables(_environment().parse(source))


class _Generation(Extension):
    """`{% generation %}`: marks an answer for training; here it only stands around it."""

    tags = {"generation"}  # noqa: RUF012 - as its base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses what could take unbounded memory, beside what Jinja's own sandbox refuses."""

    intercepted_binops = frozenset({"*", "**", "%", "<<"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in _PADDING_METHODS
        return not padding and bool(super().is_safe_attribute(obj, attr, value))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("**", "<<") or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"operator {operator} is not available in chat templates")
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            times = next((side for side in (left, right) if isinstance(side, int)), MAX_LOOP)
            sized = next((side for side in (left, right) if isinstance(side, str | list | tuple)), None)
            if sized is None or times * len(sized) > MAX_LOOP:
                raise SecurityError("a repetition is too long")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") == "replace":
            longest = max((len(str(arg)) for arg in args), default=0)
            if len(owner) * longest > MAX_OUTPUT:
                raise SecurityError("a replacement is too long")
        return super().call(context, obj, *args, **kwargs)


def _bounded_range() -> Callable[..., range]:
    left = MAX_LOOP

    def bounded(*args: int) -> range:
        nonlocal left
        result = range(*args)
        left -= len(result)
        if left < 0:
            raise SecurityError("range() yields too many items")
        return result

    return bounded


def _raise_exception(message: str) -> None:
    raise JinjaTemplateError(message)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=min(indent, 8) if indent else indent, ensure_ascii=ensure_ascii)


def _environment() -> _Sandbox:
    # Hugging Face's settings: what authors test their templates with.
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    for name in ("center", "format", "xmlattr", "urlize", "wordwrap"):
        env.filters.pop(name, None)
    env.filters["tojson"] = _tojson
    env.globals = {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
        "namespace": env.globals["namespace"],
        "dict": dict,
    }
    return env
