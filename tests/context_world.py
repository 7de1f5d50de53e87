"""A conversation without store and engine: a tokenizer of words, and a branch that grows by being planned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

from rallychat.context.index import Hit, Index
from rallychat.context.types import Budget, Memory, Strategy, Turn
from rallychat.engines.client import EngineClient
from rallychat.messages import Piece, Role, Text
from rallychat.planning import Plan, Voice, plan_turn
from rallychat.prompts import PromptTemplate
from rallychat.store import StoredMessage, TokenSpan
from rallychat.store.contexts import newest
from rallychat.store.types import Mark

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DAY = datetime(2024, 3, 1, tzinfo=UTC)


class WordTokens:
    """Tokenises words, spaces and marks; counts how often it was asked for how much."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.asked = 0

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        self.asked += sum(len(piece.text) for piece in pieces)
        return [self.ids(piece.text) for piece in pieces]

    def ids(self, text: str) -> list[int]:
        return [self.known.setdefault(word, len(self.known)) for word in re.findall(r"\w+|\s+|[^\w\s]", text)]

    def text(self, ids: Sequence[int]) -> str:
        words = {number: word for word, number in self.known.items()}
        return "".join(words[token] for token in ids)


@dataclass
class Talk:
    """One branch, and what was planned of it."""

    strategy: Strategy
    template: PromptTemplate = field(default_factory=lambda: PromptTemplate(CHATML))
    system: str = "Be brief."
    window: int = 600
    budget: Budget | None = None
    path: list[StoredMessage] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    tokens: WordTokens = field(default_factory=WordTokens)
    previous: list[int] = field(default_factory=list)
    count: int = 0
    index: Index = field(default_factory=Index)

    @property
    def limits(self) -> Budget:
        return self.budget or Budget(window=self.window, answer=self.window // 4, fixed=len(self.system) // 4)

    def add(self, role: Role, text: str, span: TokenSpan | None = None) -> StoredMessage:
        self.count += 1
        row = StoredMessage(
            id=f"m{self.count}", conversation_id="c", parent_id=self.path[-1].id if self.path else None, role=role,
            parts=(Text(text),), model=None, status="complete", finish_reason=None, error=None, usage=None,
            timings=None, report=None, span=span, created_at=DAY + timedelta(hours=self.count),
        )  # fmt: skip
        self.path.append(row)
        return row

    async def plan(self, path: Sequence[StoredMessage] | None = None, memory: Memory | None = None) -> Plan:
        rows = self.path if path is None else path
        return await plan_turn(
            rows,
            voice=Voice(self.system, self.template, ("m",), cast(EngineClient, self.tokens)),
            strategy=self.strategy,
            budget=self.limits,
            memory=memory or newest(self.memories, [row.id for row in rows]),
            search=self.search,
            previous=self.previous,
        )

    async def search(self, turns: Sequence[Turn], question: str) -> list[Hit]:
        self.index.take(turns)
        there = {turn.id for turn in turns}
        return [hit for hit in self.index.find(question) if hit.id in there]

    async def turn(self, question: str, answer: str) -> Plan:
        self.add("user", question)
        return await self.answer(answer)

    async def answer(self, answer: str, *, thought: str = "") -> Plan:
        plan = await self.plan()
        if plan.fresh is not None:
            self.memories.append(replace(plan.fresh, version=len(self.memories) + 1))
        self.path = [replace(row, span=plan.spans.get(row.id, row.span)) for row in self.path]
        said = self.tokens.ids(thought + answer)
        self.add("assistant", answer, TokenSpan(plan.key, tuple(said)))
        self.previous = plan.ids
        return plan

    def mark(self, index: int, mark: Mark | None) -> None:
        self.path[index] = replace(self.path[index], mark=mark)
