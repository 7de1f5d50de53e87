"""Values to columns and back. Knows how each value is written; never sees a connection."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import orjson

from rallychat.catalog.types import Sampling
from rallychat.errors import InvalidRequest, StoreError
from rallychat.messages import ContextReport, Part, Reasoning, Segment, Text, Timings, Usage
from rallychat.store.types import Conversation, Ending, Memory, StoredMessage, TokenSpan
from rallychat.unset import UNSET, Unset

_PARTS: dict[str, type[Part]] = {"text": Text, "reasoning": Reasoning}
_Value = TypeVar("_Value", Usage, Timings, Sampling)
_NAMING = ("kept", "dropped", "compacted", "excluded", "pinned", "retrieved", "elsewhere")
"""What of a report names messages."""
_FIELDS: dict[type, frozenset[str]] = {
    kind: frozenset(field.name for field in fields(kind))
    for kind in (Usage, Timings, Sampling, ContextReport)
}


def to_json(value: Any) -> str:
    """Compact JSON. Raises InvalidRequest for what JSON cannot hold (an integer past 64 bits, say)."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as exc:
        raise InvalidRequest(f"A value cannot be stored: {exc}.") from exc


def from_json(text: str | bytes) -> Any:
    """The value again. Raises StoreError for what is no JSON: somebody else wrote it, or the disk failed."""
    try:
        return orjson.loads(text)
    except ValueError as exc:
        raise StoreError(f"A value in the conversation database is damaged: {exc}.") from exc


def checked(text: str, *, param: str) -> str:
    """A person's `text`, unchanged.

    Raises:
        InvalidRequest: it holds U+0000, which PostgreSQL cannot keep, or half a surrogate pair, which
            UTF-8 cannot.
    """
    if (at := text.find("\0")) >= 0:
        sentence = f"'{param}' holds a NUL character at position {at}."
        raise InvalidRequest(sentence, param=param, hint="remove it")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        lone = f"U+{ord(text[exc.start]):04X}"
        raise InvalidRequest(
            f"'{param}' holds half of a character ({lone}) at position {exc.start}.",
            param=param,
            hint="send valid Unicode text",
        ) from exc
    return text


def mended(text: str) -> str:
    """A model's `text`, with U+FFFD for what cannot be stored: an answer is never lost for one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


def is_id(text: str) -> bool:
    """Whether `text` can be an id at all; what cannot is never sent to the database."""
    return len(text) <= 40 and text.isascii() and text.isprintable()


def parts_checked(parts: tuple[Part, ...]) -> list[dict[str, str]]:
    """The JSON of a person's parts. Raises InvalidRequest as `checked` does."""
    return [{"kind": part.kind, "text": checked(part.text, param="content")} for part in parts]


def parts_mended(parts: tuple[Part, ...]) -> list[dict[str, str]]:
    """The JSON of a model's parts."""
    return [{"kind": part.kind, "text": mended(part.text)} for part in parts]


def sampling_json(sampling: Sampling) -> dict[str, Any]:
    """Only what is given. Raises InvalidRequest as `checked` does."""
    for text in sampling.stop or ():
        checked(text, param="stop")
    return sampling.as_dict()


def metadata_json(metadata: Mapping[str, str]) -> dict[str, str]:
    """A client's notes. Raises InvalidRequest as `checked` does."""
    return {checked(k, param="metadata"): checked(v, param="metadata") for k, v in metadata.items()}


def folder_name(name: str | None) -> str | None:
    """A folder's name without spaces around it; None and what is empty: no folder.

    Raises:
        InvalidRequest: it is longer than 100 characters, or cannot be stored.
    """
    short = checked((name or "").strip(), param="folder")
    if len(short) > 100:
        raise InvalidRequest("A folder's name has at most 100 characters.", param="folder")
    return short or None


def settled(
    *,
    title: str | Unset,
    system: str | Unset,
    model: str | Unset | None,
    sampling: Sampling | Unset,
    metadata: Mapping[str, str] | Unset | None,
    strategy: str | Unset | None = UNSET,
    budget: int | Unset | None = UNSET,
    elsewhere: bool | Unset | None = UNSET,
) -> dict[str, Any]:
    """The columns of a conversation that are given, checked."""
    columns: dict[str, Any] = {}
    for name, text in (("title", title), ("system", system), ("model", model), ("strategy", strategy)):
        if text is not UNSET:
            columns[name] = None if text is None else checked(text, param=name)
    if sampling is not UNSET:
        columns["sampling"] = sampling_json(sampling)
    if metadata is not UNSET:
        columns["metadata"] = metadata_json(metadata or {})
    if budget is not UNSET:
        columns["budget"] = budget
    if elsewhere is not UNSET:
        columns["elsewhere"] = elsewhere
    return columns


def span_columns(span: TokenSpan | None) -> dict[str, Any]:
    """Ids as 32-bit little-endian integers: a fifth of what JSON takes, and read without parsing."""
    if span is None:
        return {"span_key": None, "span_ids": None, "span_quoted": None}
    try:
        ids = array("I", span.ids)
    except (OverflowError, TypeError) as exc:
        raise StoreError("A token id is not an integer of 32 bits.", hint="the engine sent it") from exc
    if sys.byteorder == "big":
        ids.byteswap()
    quoted = mended(span.quoted) or None
    return {"span_key": mended(span.key), "span_ids": ids.tobytes(), "span_quoted": quoted}


def report_json(report: ContextReport | None) -> dict[str, Any] | None:
    """Segments as [kind, message id, tokens]: there is one for every message of the prompt."""
    if report is None:
        return None
    written = {name: getattr(report, name) for name in _FIELDS[ContextReport]}
    written["segments"] = [_segment(segment) for segment in report.segments]
    written["divergence"] = mended(report.divergence)
    return written


def report_renamed(
    written: dict[str, Any] | None, names: Mapping[str, str], versions: Mapping[int, int]
) -> dict[str, Any] | None:
    """The JSON of a report with other names for its messages, and numbers for its memory, as a copy has them."""
    if written is None:
        return None
    changed = {key: [names.get(name, name) for name in written.get(key) or ()] for key in _NAMING}
    segments = [[kind, names.get(name, name), *more] for kind, name, *more in written["segments"]]
    memory = versions.get(written.get("memory") or 0, 0)
    return {**written, **changed, "segments": segments, "memory": memory}


def ending_columns(end: Ending) -> dict[str, Any]:
    """How an answer ended, and what it took."""
    return {
        "finish_reason": end.reason,
        "error": None if end.error is None else mended(end.error),
        "usage": figures_json(end.usage),
        "timings": figures_json(end.timings),
    }


def _segment(segment: Segment) -> list[Any]:
    score = [] if segment.score is None else [segment.score]
    return [segment.kind, segment.message_id, segment.tokens, *score, *([segment.by] if segment.by else [])]


def figures_json(figures: Usage | Timings | None) -> dict[str, Any] | None:
    """Usage or timings as they are."""
    return None if figures is None else asdict(figures)


def conversation_from(row: Mapping[str, Any]) -> Conversation:
    """A row of `conversations`."""
    try:
        return Conversation(
            id=row["id"],
            title=row["title"],
            system=row["system"],
            model=row["model"],
            sampling=sampling_from(row["sampling"]),
            tip_id=row["tip_id"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            metadata=row["metadata"] or {},
            listed=row["listed"],
            strategy=row.get("strategy"),
            budget=row.get("budget"),
            elsewhere=row.get("elsewhere"),
            pinned=bool(row.get("pinned")),
            archived=bool(row.get("archived")),
            folder=row.get("folder"),
            deleted_at=row.get("deleted_at"),
            answering=row.get("answering"),
            asked=row.get("asked"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise StoreError(f"Conversation '{row['id']}' in the database is damaged: {exc!r}.") from exc


def message_from(row: Mapping[Any, Any]) -> StoredMessage:
    """A row of `messages`; columns that were not asked for (`report`) count as None."""
    try:
        return StoredMessage(
            id=row["id"],
            conversation_id=row["conversation_id"],
            parent_id=row["parent_id"],
            role=row["role"],
            parts=tuple(_PARTS[part["kind"]](part["text"]) for part in row["parts"]),
            model=row["model"],
            status=row["status"],
            finish_reason=row["finish_reason"],
            error=row["error"],
            usage=_known(Usage, row["usage"]),
            timings=_known(Timings, row["timings"]),
            report=_report(row.get("report")),
            span=_span(row["span_key"], row["span_ids"], row["span_quoted"]),
            created_at=row["created_at"],
            mark=row["mark"],
            error_code=row["error_code"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise StoreError(f"Message '{row['id']}' in the database is damaged: {exc!r}.") from exc


def sampling_from(written: dict[str, Any]) -> Sampling:
    """What was given."""
    stop = written.get("stop")
    known = _known(Sampling, {**written, "stop": None if stop is None else tuple(stop)})
    return known or Sampling()


def _known(kind: type[_Value], written: dict[str, Any] | None) -> _Value | None:
    """`kind` from the fields it has today; one that a later version wrote is left out."""
    if written is None:
        return None
    names = _FIELDS[kind]
    return kind(**{name: v for name, v in written.items() if name in names and v is not None})


def _report(written: dict[str, Any] | None) -> ContextReport | None:
    if written is None:
        return None
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in written.items()}
    known["segments"] = tuple(Segment(*segment) for segment in written["segments"])
    return ContextReport(**{name: value for name, value in known.items() if name in _FIELDS[ContextReport]})


def memory_from(row: Mapping[Any, Any]) -> Memory:
    """A row of `memories`."""
    names = [field.name for field in fields(Memory)]
    return Memory(**{name: row[name] for name in names if name != "covers"}, covers=tuple(row["covers"]))


def _span(key: str | None, ids: bytes | None, quoted: str | None) -> TokenSpan | None:
    if key is None or ids is None:
        return None
    values = array("I")
    values.frombytes(ids)
    if sys.byteorder == "big":
        values.byteswap()
    return TokenSpan(key, tuple(values), quoted or "")
