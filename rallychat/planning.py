"""From a conversation to token ids: which messages, which ids, and the report that says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rallychat.context import log as token_log
from rallychat.context.trim import answer_reserve, cut
from rallychat.engines.client import EngineClient
from rallychat.errors import ContextOverflow
from rallychat.messages import ContextReport, Message, Piece, Role, Segment
from rallychat.prompts import PromptTemplate, Rendered
from rallychat.store import StoredMessage, TokenSpan

T = TypeVar("T")
MUCH = 100_000
"""Characters of messages from which on a prompt is rendered in a thread."""
PIECES = 8192
"""Pieces sent to the tokenizer at a time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt ready for the engine. `spans` are the ids each message got, to be kept; `key` is their log's."""

    ids: list[int]
    report: ContextReport
    key: str = ""
    spans: dict[str, TokenSpan] | None = None


@dataclass(frozen=True, slots=True)
class _Sized:
    entries: list[token_log.Entry]
    ids: list[list[int]]

    @property
    def total(self) -> int:
        return sum(map(len, self.ids))


async def plan_turn(
    path: Sequence[StoredMessage],
    *,
    system: str,
    template: PromptTemplate,
    facts: Sequence[str],
    client: EngineClient,
    window: int,
    max_tokens: int | None,
) -> Plan:
    """The prompt of a conversation: all of it while it fits, else its newest part.

    Args:
        path: the branch, ending with the user's message or with the answer to be continued.
        facts: what the ids depend on beside the system prompt (model, template).
        max_tokens: of the answer, if anybody asked for a limit.

    Raises:
        ContextOverflow: not even the last message fits.
    """
    budget = window - answer_reserve(window, max_tokens)
    key = token_log.log_key(*facts, system, first_kept=None)
    start = token_log.first_kept(path, key)
    if start is not None:
        key = token_log.log_key(*facts, system, first_kept=start)
    kept = path[next((i for i, row in enumerate(path) if row.id == start), 0) :]
    sized = await _sized(kept, system=system, template=template, key=key, client=client)
    divergence = ""
    if sized.total > budget and len(kept) > 1:
        kept = kept[_cut(kept, sized, budget) :]
        key = token_log.log_key(*facts, system, first_kept=kept[0].id)
        sized = await _sized(kept, system=system, template=template, key=key, client=client)
        divergence = "the oldest messages were dropped to make room"
    elif any(entry.ids is None and entry.message_id for entry in sized.entries[:-1]):
        divergence = "this branch was not yet evaluated with this model and system prompt"
    if sized.total >= window:
        raise ContextOverflow(needed=sized.total + 1, window=window)
    return Plan(
        ids=[token for ids in sized.ids for token in ids],
        report=ContextReport(
            strategy="full",
            window=window,
            budget=budget,
            prompt_tokens=sized.total,
            segments=tuple(map(_segment, sized.entries, sized.ids)),
            kept=tuple(row.id for row in kept),
            dropped=tuple(row.id for row in path[: len(path) - len(kept)]),
            divergence=divergence,
        ),
        key=key,
        spans={
            entry.message_id: TokenSpan(key, tuple(ids))
            for entry, ids in zip(sized.entries, sized.ids, strict=True)
            if entry.message_id and len(sized.entries) >= len(kept)
        },
    )


def leading_system(system: str, path: Sequence[StoredMessage]) -> tuple[str, list[StoredMessage]]:
    """System messages that begin a path belong to its system prompt; returns that, and the rest of the path."""
    head = list(itertools.takewhile(lambda row: row.role == "system", path))
    told = [text for text in (system, *(row.text for row in head)) if text]
    return "\n\n".join(told), list(path[len(head) :])


def _cut(kept: Sequence[StoredMessage], sized: _Sized, budget: int) -> int:
    tokens = [len(ids) for ids in sized.ids]
    if len(tokens) < len(kept):  # boundaries unknown: assume messages share the tokens by their length
        texts = [len(row.text) + 1 for row in kept]
        return cut(
            [row.role for row in kept], [sized.total * n // sum(texts) for n in texts], fixed=0, budget=budget
        )
    head = len(tokens) - len(kept)
    return cut([row.role for row in kept], tokens[head:], fixed=sum(tokens[:head]), budget=budget)


async def _sized(
    path: Sequence[StoredMessage], *, system: str, template: PromptTemplate, key: str, client: EngineClient
) -> _Sized:
    size = sum(len(row.text) for row in path)
    entries = await _aside(size, lambda: token_log.entries(path, system=system, template=template, key=key))
    unknown = [entry for entry in entries if entry.ids is None]
    fresh = iter(await _tokenized([piece for entry in unknown for piece in entry.pieces], client))
    ids = [
        list(entry.ids) if entry.ids is not None else [token for _ in entry.pieces for token in next(fresh)]
        for entry in entries
    ]
    return _Sized(entries, ids)


async def _tokenized(pieces: Sequence[Piece], client: EngineClient) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(pieces), PIECES):
        found += await client.tokenize(pieces[start : start + PIECES])
    return found


async def _aside(characters: int, work: Callable[[], T]) -> T:
    """`work`, in a thread if it is so much that others would feel it."""
    return await asyncio.to_thread(work) if characters > MUCH else work()


def _segment(entry: token_log.Entry, ids: Sequence[int]) -> Segment:
    return Segment(_kind(entry.role), entry.message_id, len(ids))


async def tokens_of(rendered: Rendered, client: EngineClient) -> list[list[int]]:
    """The ids of a rendered prompt, chunk by chunk."""
    fresh = iter(await _tokenized([piece for chunk in rendered.chunks for piece in chunk.pieces], client))
    return [[token for _ in chunk.pieces for token in next(fresh)] for chunk in rendered.chunks]


async def plan_messages(
    messages: Sequence[Message],
    *,
    template: PromptTemplate,
    client: EngineClient,
    window: int,
    max_tokens: int | None,
) -> Plan:
    """The prompt of a stateless request: all its messages, or an error; never a silent cut.

    Raises:
        ContextOverflow: prompt and answer do not fit the window.
    """
    rendered = await _aside(sum(len(m.text) for m in messages), lambda: template.render(messages))
    pieces = sum(len(chunk.pieces) for chunk in rendered.chunks)
    if pieces > window:  # each is a token at least
        raise ContextOverflow(needed=pieces, window=window)
    ids = await tokens_of(rendered, client)
    segments = (
        Segment("memory" if chunk.message is None else _kind(messages[chunk.message].role), None, len(part))
        for chunk, part in zip(rendered.chunks, ids, strict=True)
    )
    plan = plan_ids([token for part in ids for token in part], window=window, max_tokens=max_tokens)
    return replace(plan, report=replace(plan.report, segments=tuple(segments)))


def _kind(role: Role) -> Literal["system", "user", "assistant"]:
    return "user" if role == "tool" else role


async def plan_text(text: str, *, client: EngineClient, window: int, max_tokens: int | None) -> Plan:
    """The prompt of a raw completion given as text; control tokens in it are recognised, as is the custom."""
    (ids,) = await client.tokenize([Piece(text)])
    return plan_ids(ids, window=window, max_tokens=max_tokens)


def plan_ids(ids: Sequence[int], *, window: int, max_tokens: int | None) -> Plan:
    """The prompt of a raw completion given as ids.

    Raises:
        ContextOverflow: prompt and answer do not fit the window.
    """
    if len(ids) + (max_tokens or 1) > window:
        raise ContextOverflow(needed=len(ids) + (max_tokens or 1), window=window)
    return Plan(
        list(ids), ContextReport(strategy="full", window=window, budget=window, prompt_tokens=len(ids))
    )
