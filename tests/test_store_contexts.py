"""What the store knows of contexts: search, marks, memories; and that cached branches are never stale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rallychat.errors import NotFound
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, Memory, TokenSpan
from rallychat.store.contexts import newest


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
    assert newest(await store.contexts.memories(chat), [two]) == first
    with pytest.raises(NotFound):
        await store.contexts.remember(chat, Memory("ledger", "x", "msg_gone"))


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


async def test_strategy_and_budget_are_the_conversation_s(store: ConversationStore) -> None:
    chat = (await store.create()).id
    changed = await store.update(chat, strategy="ledger", budget=900)
    assert (changed.strategy, changed.budget) == ("ledger", 900)
    assert await store.get(chat) == changed
    assert (await store.update(chat, strategy=None)).strategy is None
