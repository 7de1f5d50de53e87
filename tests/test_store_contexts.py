"""What the store knows of contexts: search, marks, memories; and that cached branches are never stale."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from rallychat.errors import Conflict, NotFound
from rallychat.messages import ContextReport, Message, Segment, Text, Timings, Usage
from rallychat.settings import Settings
from rallychat.store import ConversationStore, Memory, StoredMessage, TokenSpan, branches, codec
from rallychat.store.branches import FEW
from rallychat.store.contexts import newest, versions_of

TABLES = ("conversations", "messages", "memories")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as opened:
        yield opened


async def exchange(store: ConversationStore, chat: str, said: str, answer: str) -> tuple[str, str]:
    tip = (await store.get(chat)).tip_id
    asked, row = await store.answers.begin(chat, parent_id=tip, user=Message.of("user", said), model="m")
    await store.answers.finish(row.id, parts=(Text(answer),), reason="stop", usage=None, timings=None)
    assert asked is not None
    return asked.id, row.id


async def test_what_was_said_is_found_by_its_words_in_its_conversation(store: ConversationStore) -> None:
    chat, other = (await store.create()).id, (await store.create()).id
    mine, answer = await exchange(store, chat, "My cats are called Miro and Zoë", "Lovely names")
    await exchange(store, other, "My cat sleeps", "Good")
    found = await store.contexts.search("what is my cat called?", conversation_id=chat)
    assert [message for message, _ in found] == [mine]
    assert [m for m, _ in await store.contexts.search("zoe", conversation_id=chat)] == [mine]
    assert [m for m, _ in await store.contexts.search("lovely", conversation_id=chat)] == [answer]
    assert len(await store.contexts.search("cat")) == 2
    await store.delete(chat)
    assert await store.contexts.search("miro") == []


@pytest.mark.parametrize("asked", ['"', "a OR NOT (", "text: * ^", "' -- ;", "NEAR(", "", "的"])
async def test_no_question_is_an_operator(store: ConversationStore, asked: str) -> None:
    await exchange(store, (await store.create()).id, "hello", "hello")
    assert await store.contexts.search(asked) == []


async def test_memories_are_versions_and_the_newest_of_the_branch_holds(store: ConversationStore) -> None:
    chat = (await store.create()).id
    one, two = await exchange(store, chat, "a", "b")
    first = await store.contexts.remember(chat, Memory("ledger", "one", two, (one, two)))
    second = await store.contexts.remember(chat, Memory("ledger", "two", two, (one, two), "user"))
    versions = await store.contexts.memories(chat)
    assert [(m.version, m.text, m.edited_by, m.covers) for m in versions] == [
        (1, "one", "rules", (one, two)),
        (2, "two", "user", (one, two)),
    ]
    assert newest(versions, [one, two]) == second
    assert newest(versions, [one]) is None
    await store.contexts.set_active(chat, 2, active=False)
    assert newest(await store.contexts.memories(chat), [one, two]) == first
    with pytest.raises(NotFound):
        await store.contexts.remember(chat, Memory("ledger", "x", "msg_gone"))


async def test_a_memory_that_holds_words_of_another_branch_is_not_in_force(store: ConversationStore) -> None:
    chat = (await store.create()).id
    one, two = await exchange(store, chat, "a", "b")
    three, four = await exchange(store, chat, "c", "d")
    first = await store.contexts.remember(chat, Memory("ledger", "one", two, (one, two)))
    read = Memory("summary", "all", two, (one, two, three, four), "model")
    second = await store.contexts.remember(chat, read)
    assert (await store.view(chat))[1] == second
    asked, _ = await store.answers.begin(chat, parent_id=three, user=None, model="m")
    assert asked is None
    assert (await store.view(chat))[1] == first
    await store.select(chat, four)
    assert (await store.view(chat))[1] == second


async def test_what_was_made_from_versions_that_are_no_longer_those_is_not_stored(
    store: ConversationStore,
) -> None:
    chat = (await store.create()).id
    one, two = await exchange(store, chat, "a", "b")
    memory = Memory("ledger", "one", two, (one, two))
    await store.contexts.remember(chat, memory, known=())
    known = versions_of(await store.contexts.memories(chat))
    await store.contexts.remember(chat, memory, known=known)
    with pytest.raises(Conflict):
        await store.contexts.remember(chat, memory, known=known)
    with pytest.raises(Conflict):
        await store.contexts.set_active(chat, 1, active=False, known=known)
    known = versions_of(await store.contexts.memories(chat))
    await store.contexts.set_active(chat, 1, active=False, known=known)
    with pytest.raises(Conflict):
        await store.contexts.remember(chat, memory, known=known)
    assert [m.active for m in await store.contexts.memories(chat)] == [False, True]


async def test_a_copy_has_what_is_kept_of_its_messages_and_remembered_of_them(
    store: ConversationStore,
) -> None:
    chat = (await store.create()).id
    one, two = await exchange(store, chat, "a", "b")
    await store.contexts.remember(chat, Memory("ledger", "left", two, (one, two)))
    asked, row = await store.answers.begin(chat, parent_id=two, user=Message.of("user", "c"), model="m")
    assert asked is not None
    ids = (one, two, asked.id, row.id)
    segments = (
        Segment("memory", None, 4),
        Segment("elsewhere", "msg_other", 2),
        Segment("user", asked.id, 9),
    )
    report = ContextReport("hybrid", 99, 80, 15, segments, (asked.id,), compacted=(one, two), memory=3)
    ended: dict[str, Any] = {"reason": "length", "usage": Usage(15, 3), "timings": Timings(total_ms=5.0)}
    span = TokenSpan("k:said", (7,))
    await store.answers.finish(row.id, parts=(Text("d"),), report=report, span=span, **ended)
    late = await exchange(store, chat, "later", "on")
    for made in (
        Memory("summary", "of what follows, too", two, (*ids, *late), "model"),
        Memory("ledger", "a person's", two, (one, two), "user"),
    ):
        await store.contexts.remember(chat, made)
    await store.contexts.set_active(chat, 1, active=False)
    await store.contexts.mark(one, "pin")
    await store.save_spans({one: TokenSpan("k:1", (1, 2), "quoted")})
    copy = (await store.library.fork(chat, row.id)).id
    path, memory = await store.view(copy)
    new = dict(zip(ids, (row.id for row in path), strict=True))
    assert [(row.mark, row.span) for row in path] == [
        ("pin", TokenSpan("k:1", (1, 2), "quoted")),
        (None, None),
        (None, None),
        (None, span),
    ]
    assert (path[3].finish_reason, path[3].usage, path[3].timings) == tuple(ended.values())
    assert path[3].report == replace(
        report,
        segments=(*segments[:2], replace(segments[2], message_id=new[asked.id])),
        kept=(new[asked.id],),
        compacted=(new[one], new[two]),
        memory=2,
    )
    known = await store.contexts.memories(copy)
    assert [(m.version, m.text, m.until, m.covers, m.edited_by, m.active) for m in known] == [
        (1, "left", new[two], (new[one], new[two]), "rules", False),
        (2, "a person's", new[two], (new[one], new[two]), "user", True),
    ]
    assert memory == known[1]


async def test_a_branch_read_again_shows_what_changed(store: ConversationStore) -> None:
    chat = (await store.create()).id
    one, two = await exchange(store, chat, "a", "b")
    await exchange(store, chat, "c", "d")
    before = await store.path(chat)
    assert await store.path(chat) == before
    await store.contexts.mark(one, "pin")
    await store.save_spans({two: TokenSpan("k:said", (1, 2, 3))})
    after = {row.id: row for row in await store.path(chat)}
    assert (after[one].mark, after[two].span) == ("pin", TokenSpan("k:said", (1, 2, 3)))
    await store.save_spans({two: TokenSpan("k:said", (1, 2), "quoted")})
    assert (await store.path(chat))[1].span == TokenSpan("k:said", (1, 2), "quoted")
    await store.contexts.mark(one, None)
    assert (await store.path(chat))[0] == before[0]


async def test_what_is_taken_out_is_quoted_no_more(store: ConversationStore) -> None:
    chat, other = (await store.create()).id, (await store.create()).id
    one, _ = await exchange(store, chat, "My cat is called Miro", "Lovely")
    two, three = await exchange(store, chat, "What is my cat called?", "Miro")
    four, _ = await exchange(store, other, "And my dog?", "Rex")
    quoting, plain = TokenSpan("k:a", (1, 2), "[User: My cat is called Miro]"), TokenSpan("k:b", (3,))
    await store.save_spans({two: quoting, three: plain, four: quoting})
    await store.path(chat)
    await store.items.remove(chat, one, which=lambda row: range(len(row.parts)))
    assert [row.span for row in (await store.path(chat))[1:]] == [None, plain]
    assert (await store.path(other))[0].span == quoting


async def test_strategy_and_budget_are_the_conversation_s(store: ConversationStore) -> None:
    chat = (await store.create()).id
    changed = await store.update(chat, strategy="ledger", budget=900)
    assert (changed.strategy, changed.budget) == ("ledger", 900)
    assert await store.get(chat) == changed
    assert (await store.update(chat, strategy=None)).strategy is None


async def test_a_branch_kept_by_one_process_shows_what_another_changed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    async with ConversationStore.open(settings) as here, ConversationStore.open(settings) as there:
        chat = (await here.create()).id
        one, two = await exchange(here, chat, "a", "b")
        three, four = await exchange(here, chat, "c", "d")
        for number in range(4):
            await exchange(here, chat, f"{number}", "e")
        changes = [
            there.contexts.mark(one, "pin"),
            there.save_spans({two: TokenSpan("k:said", (1, 2, 3))}),
            there.save_spans({two: TokenSpan("k:said", (1, 2, 4))}),  # as long as the one before
            there.contexts.mark(one, None),
            there.items.remove(chat, three, which=lambda _: [0]),
            there.items.remove(chat, four, which=lambda _: [0]),
        ]
        for change in changes:
            kept = await here.path(chat)
            await change
            assert await here.path(chat) == await there.path(chat) != kept
        tip = (await here.get(chat)).tip_id
        assert tip is not None
        await there.answers.resume(tip)
        assert (await here.path(chat))[-1].status == "running"


async def test_a_turn_of_a_long_conversation_reads_its_newest_messages_alone(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = (await store.create()).id
    for number in range(20):
        await exchange(store, chat, f"{number}", "yes")
    before = await store.path(chat)
    read: list[str] = []
    message_from = codec.message_from

    def counted(row: Any) -> StoredMessage:
        read.append(row["id"])
        return message_from(row)

    monkeypatch.setattr(codec, "message_from", counted)
    asked, _ = await store.answers.begin(
        chat, parent_id=before[-1].id, user=Message.of("user", "and?"), model="m"
    )
    assert asked is not None
    read.clear()
    path = await store.path(chat, tip=asked.id)
    assert [row.text for row in path] == [*(row.text for row in before), "and?"]
    assert len(read) <= FEW
    await store.save_spans({asked.id: TokenSpan("k", (1,))})  # nobody keeps what is not answered yet
    read.clear()
    assert (await store.path(chat))[-2].span == TokenSpan("k", (1,))
    assert len(read) <= FEW


async def test_what_is_kept_of_branches_is_bounded(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "MOST", 9)
    kept = branches.Branches()
    monkeypatch.setattr(store, "_branches", kept)
    chats = [(await store.create()).id for _ in range(6)]
    for chat in chats:
        await exchange(store, chat, "a", "b")
        await exchange(store, chat, "c", "d")
        assert len(await store.path(chat)) == 4
    assert [*kept._kept] == chats[-3:]
    assert sum(len(each.rows) for each in kept._kept.values()) == 9


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is asked of our tables meanwhile."""
    seen: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.extend([statement] if any(name in statement for name in TABLES) else [])

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", heard)


async def test_a_late_turn_takes_as_many_statements_as_an_early_one(store: ConversationStore) -> None:
    chat = (await store.create()).id
    for number in range(12):
        tip = (await store.get(chat)).tip_id
        with statements() as seen:
            asked, answer = await store.answers.begin(
                chat, parent_id=tip, user=Message.of("user", "and?"), model="m", alone=True
            )
            assert asked is not None
            path, _ = await store.view(chat, tip=asked.id)
        assert len(path) == 2 * number + 1
        assert number == 0 or len(seen) == 8
        await store.answers.finish(answer.id, parts=(Text("yes"),), reason="stop", usage=None, timings=None)
        await store.path(chat)
