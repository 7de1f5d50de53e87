"""The store against a plain-Python model: whatever is done to the tree, both tell the same."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rallychat.messages import Message, Part, Reasoning, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, TokenSpan
from tests import postgres

T = TypeVar("T")
said = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
parts = st.lists(st.builds(Text, said) | st.builds(Reasoning, said), max_size=3).map(tuple)
spans = st.none() | st.builds(
    TokenSpan, st.sampled_from(["a", "b"]), st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)
)
pick = st.randoms(use_true_random=False)


@dataclass
class Node:
    id: str
    parent: str | None
    role: str
    parts: tuple[Part, ...]
    span: TokenSpan | None = None
    running: bool = False
    reason: str | None = None


@dataclass
class Tree:
    """A conversation, told again in the simplest way. Dicts keep the order in which messages were begun."""

    nodes: dict[str, Node] = field(default_factory=dict)
    tip: str | None = None

    def children(self, parent: str | None) -> list[Node]:
        return [node for node in self.nodes.values() if node.parent == parent]

    def below(self, id_: str) -> list[str]:
        """`id_` and everything under it, in the order of beginning."""
        found = {id_}
        for node in self.nodes.values():
            if node.parent in found:
                found.add(node.id)
        return [node for node in self.nodes if node in found]

    def path(self) -> list[Node]:
        found: list[Node] = []
        at = self.tip
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return found[::-1]


class StoreAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        if url := os.environ.get("RALLYCHAT_DATABASE_URL"):
            postgres.empty(url)
        self.runner = asyncio.Runner()
        self.trees: dict[str, Tree] = {}
        self.opened = AsyncExitStack()
        self.open()

    def open(self) -> None:
        opening = ConversationStore.open(Settings(data_dir=self.folder))
        self.store = self.run(self.opened.enter_async_context(opening))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.check_every_message()
        self.run(self.opened.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)

    def nodes(self, *, running: bool | None = None, role: str | None = None) -> list[tuple[str, Node]]:
        return [
            (conversation_id, node)
            for conversation_id, tree in self.trees.items()
            for node in tree.nodes.values()
            if running in (None, node.running) and role in (None, node.role)
        ]

    @rule()
    def create(self) -> None:
        self.trees[self.run(self.store.create()).id] = Tree()

    @precondition(lambda self: self.trees)
    @rule(pick=pick, text=said, ask=st.booleans(), root=st.booleans())
    def begin(self, pick: Any, text: str, *, ask: bool, root: bool) -> None:
        conversation_id = pick.choice([*self.trees])
        tree = self.trees[conversation_id]
        parents = [node.id for node in tree.nodes.values() if not node.running]
        parent = None if root or not parents else pick.choice(parents)
        user = Message.of("user", text) if ask else None
        asked, answer = self.run(
            self.store.answers.begin(conversation_id, parent_id=parent, user=user, model="m")
        )
        assert (asked is not None) == ask
        if asked is not None:
            tree.nodes[asked.id] = Node(asked.id, parent, "user", (Text(text),))
            parent = asked.id
        tree.nodes[answer.id] = Node(answer.id, parent, "assistant", (), running=True)
        tree.tip = answer.id

    @precondition(lambda self: self.nodes(running=True))
    @rule(pick=pick, grown=st.lists(st.tuples(parts, spans), max_size=3))
    def save(self, pick: Any, grown: list[tuple[tuple[Part, ...], TokenSpan | None]]) -> None:
        chosen = pick.sample(self.nodes(running=True), min(len(grown), len(self.nodes(running=True))))
        pairs = list(zip((node for _, node in chosen), grown, strict=False))
        self.run(self.store.answers.save([(node.id, *growth) for node, growth in pairs]))
        for node, growth in pairs:
            node.parts, node.span = growth

    @precondition(lambda self: self.nodes(running=True))
    @rule(pick=pick, said=parts, span=spans, reason=st.sampled_from(["stop", "length", "cancelled", "error"]))
    def finish(self, pick: Any, said: tuple[Part, ...], span: TokenSpan | None, reason: Any) -> None:
        _, node = pick.choice(self.nodes(running=True))
        self.run(
            self.store.answers.finish(node.id, parts=said, reason=reason, usage=None, timings=None, span=span)
        )
        node.parts, node.span, node.reason, node.running = said, span, reason, False

    def endings(self) -> list[tuple[str, Node]]:
        ended = self.nodes(running=False, role="assistant")
        return [(id_, node) for id_, node in ended if not self.trees[id_].children(node.id)]

    @precondition(lambda self: self.endings())
    @rule(pick=pick)
    def resume(self, pick: Any) -> None:
        conversation_id, node = pick.choice(self.endings())
        self.run(self.store.answers.resume(node.id))
        node.running, node.reason = True, None
        self.trees[conversation_id].tip = node.id

    @precondition(lambda self: self.nodes())
    @rule(pick=pick)
    def select(self, pick: Any) -> None:
        conversation_id, node = pick.choice(self.nodes())
        tree = self.trees[conversation_id]
        tree.tip = tree.below(node.id)[-1]
        assert self.run(self.store.select(conversation_id, node.id)) == tree.tip

    @precondition(lambda self: self.nodes())
    @rule(pick=pick)
    def siblings(self, pick: Any) -> None:
        conversation_id, node = pick.choice(self.nodes())
        same = [n.id for n in self.trees[conversation_id].children(node.parent) if n.role == node.role]
        assert self.run(self.store.siblings(node.id)) == same

    @precondition(lambda self: len(self.trees) > 1)
    @rule(pick=pick)
    def delete(self, pick: Any) -> None:
        conversation_id = pick.choice([*self.trees])
        self.run(self.store.delete(conversation_id))
        del self.trees[conversation_id]

    @rule()
    def reopen(self) -> None:
        self.run(self.opened.aclose())
        for _, node in self.nodes(running=True):
            node.running, node.reason = False, "interrupted"
        self.open()
        self.check_every_message()

    @invariant()
    def every_path_is_the_same(self) -> None:
        assert {c.id: c.tip_id for c in self.run(self.store.list())} == {
            id_: tree.tip for id_, tree in self.trees.items()
        }
        for conversation_id, tree in self.trees.items():
            path = self.run(self.store.path(conversation_id))
            assert [(m.id, m.parts) for m in path] == [(n.id, n.parts) for n in tree.path()]

    def check_every_message(self) -> None:
        for conversation_id, node in self.nodes():
            stored = self.run(self.store.message(node.id))
            assert stored.conversation_id == conversation_id
            assert (
                Node(
                    stored.id,
                    stored.parent_id,
                    stored.role,
                    stored.parts,
                    stored.span,
                    stored.status == "running",
                    stored.finish_reason,
                )
                == node
            )


StoreAgainstModel.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_store_tells_what_the_model_tells = StoreAgainstModel.TestCase
