"""Turns messages into the exact prompt text of a family. Knows chat templates; never sees engines or rows.

Templates follow the field's convention (Hugging Face `chat_template`): Jinja with `messages`, `bos_token`,
`eos_token`, `add_generation_prompt`, `raise_exception`, `strftime_now`, `tojson`. They come with weights from
strangers, so they run in an immutable sandbox with bounds on work and output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError as JinjaTemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rallychat.errors import TemplateError
from rallychat.messages import Message, Piece

MAX_OUTPUT = 16 * 1024 * 1024
"""Characters a rendered prompt may have."""
MAX_LOOP = 200_000
"""Items all `range()` calls of one rendering may yield."""
_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "translate"})


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a rendered prompt: `message` is the index whose stretch this is.

    An assistant's chunk is its content alone; everything between two answers belongs to the messages in
    between, the header of the coming answer included.
    """

    message: int
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The chunk as text."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered prompt. `segmented` is False where the template made message boundaries unknowable."""

    chunks: tuple[Chunk, ...]
    segmented: bool

    @property
    def text(self) -> str:
        """The exact prompt text."""
        return "".join(chunk.text for chunk in self.chunks)


class PromptTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        bos_token, eos_token: texts given to the template under these names.
        control_tokens: texts that would tokenise to one control token; where a message contains them they
            become pieces that are not `special`, so they stay text.

    Raises:
        TemplateError: the source is not a valid template.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", control_tokens: Sequence[str] = ()
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._control = tuple(sorted((t for t in set(control_tokens) if t), key=len, reverse=True))
        self._control_pattern = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")
        self._template = _compile(source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Rendered:
        """The prompt of `messages` (at least one), ending with the header of the coming answer.

        Raises:
            TemplateError: the template refuses these messages, or goes beyond its bounds.
        """
        if not messages:
            raise TemplateError("There are no messages to render.", param="messages")
        contents = [message.text for message in messages]
        private = _private_characters(contents, 2 + len(self._control))
        begin, end = next(private), next(private)
        shields = dict(zip(self._control, private, strict=False))
        shielded = [self._control_pattern.sub(lambda m: shields[m.group()], text) for text in contents]

        def text_of(texts: Sequence[str]) -> str:
            return self._run(messages, texts, add_generation_prompt)

        plain = text_of(shielded)
        spans = _content_spans(plain, shielded, text_of, begin, end)
        split = _Splitter({char: token for token, char in shields.items()}, self._control_pattern)
        if spans is None:
            return Rendered(
                (Chunk(len(messages) - 1, split.pieces(plain, 0, len(plain), ())),), segmented=False
            )
        return Rendered(tuple(_chunks(plain, messages, spans, split)), segmented=True)

    def _run(self, messages: Sequence[Message], contents: Sequence[str], add_generation_prompt: bool) -> str:
        rows = [
            {"role": message.role, "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        parts: list[str] = []
        size = 0
        try:
            stream = self._template.generate(
                messages=rows,
                add_generation_prompt=add_generation_prompt,
                range=_bounded_range(),
                **self._tokens,
            )
            for part in stream:
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


# --- boundaries -------------------------------------------------------------------------------------------


def _private_characters(contents: Sequence[str], count: int) -> Iterator[str]:
    """`count` private-use characters that occur in none of the contents."""
    taken = set().union(*contents)
    free = (char for char in map(chr, _PRIVATE_USE) if char not in taken)
    return (char for _, char in zip(range(count), free, strict=False))


def _content_spans(
    plain: str, contents: Sequence[str], text_of: Callable[[Sequence[str]], str], begin: str, end: str
) -> list[tuple[int, int]] | None:
    """Where each content stands in `plain`, found by rendering once more with marks around each content.

    Templates may trim: then the marks go around the trimmed content. None where the marks do not come back
    once each and in order, or where they changed what the template wrote.
    """
    for shape in (str, str.strip):
        try:
            marked = text_of([f"{begin}{shape(content)}{end}" for content in contents])
        except TemplateError:
            return None
        if marked.replace(begin, "").replace(end, "") == plain:
            return _marked_spans(marked, begin, end, len(contents))
    return None


def _marked_spans(marked: str, begin: str, end: str, count: int) -> list[tuple[int, int]] | None:
    marks = list(re.finditer(f"[{begin}{end}]", marked))
    if "".join(mark.group() for mark in marks) != (begin + end) * count:
        return None
    positions = [mark.start() - earlier for earlier, mark in enumerate(marks)]  # as if no mark were there
    return list(zip(positions[::2], positions[1::2], strict=True))


def _chunks(
    plain: str, messages: Sequence[Message], spans: Sequence[tuple[int, int]], split: _Splitter
) -> Iterator[Chunk]:
    """Cuts at the end of each message's content; an answer's header goes to the message before it."""
    cut = 0
    for index, (message, (_, stop)) in enumerate(zip(messages, spans, strict=True)):
        last = index == len(messages) - 1
        if last and message.role != "assistant":
            until = len(plain)
        elif not last and messages[index + 1].role == "assistant":
            until = spans[index + 1][0]
        else:
            until = stop
        yield Chunk(index, split.pieces(plain, cut, until, spans[max(0, index - 1) : index + 2]))
        cut = until
    if cut < len(plain):
        yield Chunk(len(messages) - 1, split.pieces(plain, cut, len(plain), spans[-1:]))


class _Splitter:
    """Cuts text into pieces: shielded control tokens become literal, everything else is `special`."""

    def __init__(self, shields: Mapping[str, str], control: re.Pattern[str]) -> None:
        self._shields = shields
        self._control = control
        self._pattern = re.compile(f"[{''.join(shields)}]") if shields else re.compile(r"(?!)")

    def pieces(
        self, text: str, start: int, stop: int, contents: Sequence[tuple[int, int]]
    ) -> tuple[Piece, ...]:
        """Pieces of `text[start:stop]`; `contents` are the stretches that messages wrote."""
        literal = [
            (m.start(), m.end(), self._shields[m.group()]) for m in self._pattern.finditer(text, start, stop)
        ]
        # A token that content and template only form together was meant by nobody: keep it text.
        literal += [
            (m.start(), m.end(), m.group())
            for m in self._control.finditer(text, start, stop)
            if any(a < m.end() and m.start() < b for a, b in contents)
        ]
        out: list[Piece] = []
        at = start
        for a, b, token in sorted(literal):
            if a > at:
                out.append(Piece(text[at:a]))
            out.append(Piece(token, special=False))
            at = b
        if at < stop:
            out.append(Piece(text[at:stop]))
        return tuple(out)


# --- the sandbox ------------------------------------------------------------------------------------------


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
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
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


@lru_cache(maxsize=64)
def _compile(source: str) -> Any:
    try:
        return _environment().from_string(source)
    except (JinjaTemplateError, RecursionError) as exc:
        raise TemplateError(f"The chat template is not valid: {exc}.") from exc
