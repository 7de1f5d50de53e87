"""Conversations as a whole: filed, deleted and restored, found, copied, shared; personas. On every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rallychat.catalog.types import Sampling
from rallychat.errors import Conflict, InvalidRequest, NotFound
from rallychat.identity import acting_as
from rallychat.messages import Message, Reasoning, Text
from rallychat.retention import emptying_trash
from rallychat.settings import Settings
from rallychat.store import ConversationStore, Imported, ImportedMessage, Shelf
from rallychat.store.database import Write
from rallychat.store.library import snippet


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as opened:
        yield opened


async def say(store: ConversationStore, *texts: str, title: str = "") -> str:
    made = await store.create(title=title)
    await store.items.append(
        made.id,
        [Message.of("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts)],
    )
    return made.id


async def titles(store: ConversationStore, shelf: Shelf) -> list[str]:
    return [one.title for one in await store.library.list(shelf)]


async def test_pinned_archived_and_filed_conversations_are_listed_apart(store: ConversationStore) -> None:
    for title in ("plain", "pinned", "archived", "filed"):
        made = await store.create(title=title)
        await store.library.file(
            made.id,
            pinned=title == "pinned",
            archived=title == "archived",
            folder=" Work " if title == "filed" else "",
        )
    assert await titles(store, Shelf(pinned=True)) == ["pinned"]
    assert await titles(store, Shelf(pinned=False)) == ["filed", "plain"]
    assert await titles(store, Shelf(archived=True)) == ["archived"]
    assert await titles(store, Shelf(folder="Work")) == ["filed"]
    assert await titles(store, Shelf(filed=False)) == ["pinned", "plain"]
    assert await titles(store, Shelf(filed=True)) == ["filed"]
    assert await store.library.folders() == ["Work"]
    assert await store.library.folders(archived=True) == []
    with pytest.raises(InvalidRequest, match="100 characters"):
        await store.library.file(made.id, folder="x" * 101)


async def test_what_is_in_the_trash_is_nowhere_else_until_it_is_restored(store: ConversationStore) -> None:
    gone = await say(store, "a walrus", "ok", title="Zoo")
    await store.library.discard(gone)
    with pytest.raises(NotFound):
        await store.get(gone)
    with pytest.raises(NotFound):
        await store.path(gone)
    assert await store.list() == []
    assert await store.library.search("walrus") == []
    assert await titles(store, Shelf(trash=True)) == ["Zoo"]
    restored = await store.library.restore(gone)
    assert restored.deleted_at is None
    assert [row.text for row in await store.path(gone)] == ["a walrus", "ok"]


async def test_emptying_the_trash_takes_what_is_old_enough_and_leaves_nothing_of_it(
    store: ConversationStore,
) -> None:
    gone, kept = await say(store, "walrus", "ok"), await say(store, "tern", "ok")
    link = await store.shares.make(gone)
    await store.library.discard(gone)
    assert await store.library.empty(days=1, everybody=True) == 0
    assert await store.library.empty() == 1
    with pytest.raises(NotFound):
        await store.library.restore(gone)
    with pytest.raises(NotFound):
        await store.shares.read(link.token)
    assert await store.library.search("walrus") == []
    assert [row.text for row in await store.path(kept)] == ["tern", "ok"]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("The refrigerator hums", "refrigerato"),
        ("Le Café est fermé", "cafe ferme"),
        ("대한민국의 수도는 서울입니다", "수도"),
        ("東京は日本の首都です", "首都"),
        ("two fishes swim", "fish"),
        ("it costs 100%_sure", "100%_sure"),
        ("Über allen Gipfeln", "über"),
    ],
)
async def test_search_finds_words_and_their_beginnings_in_every_script(
    store: ConversationStore, said: str, asked: str
) -> None:
    here = await say(store, "something else", said)
    await say(store, "nothing of it", "at all")
    (hit,) = await store.library.search(asked)
    assert hit.message is not None
    assert (hit.conversation.id, hit.message.text) == (here, said)
    assert hit.marks


async def test_search_wants_every_word_pages_and_keeps_to_the_person(store: ConversationStore) -> None:
    for at in range(5):
        await say(store, f"red fish number {at}")
    await say(store, "red car")
    first = await store.library.search("red fish", limit=3)
    second = await store.library.search("red fish", limit=3, offset=3)
    assert len({hit.message.id for hit in (*first, *second) if hit.message}) == 5
    assert await store.library.search("  ") == []
    assert await store.library.search("kind") == []  # a name in how parts are stored, said by nobody
    with acting_as("somebody-else"):
        assert await store.library.search("red") == []


def test_a_snippet_marks_the_words_where_they_stand() -> None:
    text = "x " * 100 + "The İstanbul Café\nis open " + "y " * 200
    said, marks = snippet(text, ["cafe", "open"])
    assert [said[start:end] for start, end in marks] == ["Café", "open"]
    assert said.startswith("…")
    assert said.endswith("…")


async def test_a_copy_ends_with_its_message_and_goes_its_own_way(store: ConversationStore) -> None:
    here = await say(store, "one", "two", "three", "four", title="Counting")
    path = await store.path(here)
    copy = await store.library.fork(here, path[1].id)
    assert copy.title == "Counting"
    assert [row.text for row in await store.path(copy.id)] == ["one", "two"]
    await store.items.append(copy.id, [Message.of("user", "five")])
    assert [row.text for row in await store.path(here)] == ["one", "two", "three", "four"]
    other = await say(store, "elsewhere")
    with pytest.raises(NotFound):
        await store.library.fork(other, path[1].id)


async def test_a_link_shows_nothing_said_after_it_was_made_and_ends_when_revoked(
    store: ConversationStore,
) -> None:
    here = await say(store, "one", "two", title="Counting")
    link = await store.shares.make(here)
    await store.items.append(here, [Message.of("user", "secret")])
    with acting_as("a stranger"):
        conversation, rows = await store.shares.read(link.token)
        with pytest.raises(NotFound):
            await store.shares.revoke(link.id)
        with pytest.raises(NotFound):
            await store.shares.list(here)
    assert (conversation.title, [row.text for row in rows]) == ("Counting", ["one", "two"])
    await store.library.discard(here)
    with pytest.raises(NotFound):
        await store.shares.read(link.token)
    await store.library.restore(here)
    await store.shares.revoke(link.id)
    assert await store.shares.list(here) == []
    for token in (link.token, "", "é", "x" * 5000):
        with pytest.raises(NotFound):
            await store.shares.read(token)


async def test_a_link_shows_an_answer_as_it_was_while_it_goes_on_and_after(store: ConversationStore) -> None:
    here = (await store.create()).id
    _, answer = await store.answers.begin(here, parent_id=None, user=Message.of("user", "hi"), model="echo")
    ended: dict[str, Any] = {"reason": "length", "usage": None, "timings": None}
    await store.answers.finish(answer.id, parts=(Reasoning("hm"), Text("public")), **ended)
    before, whole = await store.shares.make(here), (Reasoning("hm"), Text("public, secret"))
    await store.answers.resume(answer.id)
    await store.answers.save([(answer.id, whole, None)])
    growing = (await store.shares.read(before.token))[1][-1]
    await store.answers.finish(answer.id, parts=whole, **ended | {"error": "secret"})
    after = await store.shares.make(here)
    grown = (await store.shares.read(before.token))[1][-1]
    assert growing == grown
    assert (grown.parts, grown.status, grown.error) == ((Reasoning("hm"), Text("public")), "complete", None)
    assert grown.finish_reason == "cancelled"
    shown = (await store.shares.read(after.token))[1][-1]
    assert (shown.parts, shown.finish_reason) == (whole, "length")


async def test_a_link_to_an_answer_without_words_shows_none_that_come_later(store: ConversationStore) -> None:
    here = (await store.create()).id
    _, answer = await store.answers.begin(here, parent_id=None, user=Message.of("user", "hi"), model="echo")
    ended: dict[str, Any] = {"usage": None, "timings": None}
    await store.answers.finish(answer.id, parts=(), reason="cancelled", **ended)
    link = await store.shares.make(here)
    await store.answers.resume(answer.id)
    await store.answers.finish(answer.id, parts=(Text("secret"),), reason="stop", **ended)
    assert (await store.shares.read(link.token))[1][-1].parts == ()


async def test_what_is_still_being_written_is_neither_shared_nor_copied(store: ConversationStore) -> None:
    made = await store.create()
    with pytest.raises(InvalidRequest, match="nothing to share"):
        await store.shares.make(made.id)
    _, running = await store.answers.begin(
        made.id, parent_id=None, user=Message.of("user", "hi"), model="echo"
    )
    with pytest.raises(Conflict):
        await store.shares.make(made.id)
    with pytest.raises(Conflict):
        await store.library.fork(made.id, running.id)


async def test_personas_are_kept_changed_and_forgotten_by_their_owner_alone(store: ConversationStore) -> None:
    made = await store.personas.create(name=" Pirate ", system="Arr.", sampling=Sampling(temperature=0.5))
    changed = await store.personas.update(made.id, system="Arrr.", model="echo")
    assert (changed.name, changed.system, changed.model, changed.sampling.temperature) == (
        "Pirate",
        "Arrr.",
        "echo",
        0.5,
    )
    assert await store.personas.list() == [changed]
    with acting_as("somebody-else"):
        assert await store.personas.list() == []
        with pytest.raises(NotFound):
            await store.personas.delete(made.id)
    with pytest.raises(InvalidRequest):
        await store.personas.create(name=" ")
    await store.personas.delete(made.id)
    assert await store.personas.list() == []


async def test_a_tree_from_elsewhere_is_taken_in_once(store: ConversationStore) -> None:
    text = Message.of
    tree = Imported(
        origin="there:1",
        title="Brought",
        messages=(
            ImportedMessage("user", text("user", "q").parts, None),
            ImportedMessage("assistant", text("assistant", "first").parts, 0, model="m"),
            ImportedMessage("assistant", text("assistant", "second").parts, 0),
        ),
        tip=1,
    )
    made = await store.library.take_in(tree)
    assert made is not None
    assert [row.text for row in await store.path(made.id)] == ["q", "first"]
    assert len(await store.siblings((await store.path(made.id))[1].id)) == 2
    assert await store.library.take_in(tree) is None
    with acting_as("somebody-else"):
        assert await store.library.take_in(tree) is not None


async def test_a_service_that_starts_empties_the_trash_of_everybody(store: ConversationStore) -> None:
    with acting_as("somebody"):
        gone = await say(store, "walrus")
        await store.library.discard(gone)
    async with emptying_trash(store, days=0):
        with acting_as("somebody"):
            async with asyncio.timeout(10):
                while await store.library.list(Shelf(trash=True)):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)


async def test_who_writes_while_the_trash_is_emptied_waits_for_one_conversation_not_for_all(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrown = [await say(store, "walrus") for _ in range(5)]
    for conversation_id in thrown:
        await store.library.discard(conversation_id)
    write, transactions = store._database.write, [0]

    def counted(kind: Write = "durable") -> AbstractAsyncContextManager[AsyncConnection]:
        transactions[0] += 1
        return write(kind)

    monkeypatch.setattr(store._database, "write", counted)
    assert (await store.library.empty(), transactions[0]) == (5, 5)


async def test_the_one_message_with_all_words_is_found_among_hundreds_with_one(
    store: ConversationStore,
) -> None:
    both = "Nothing of it. " * 200 + "The harbour is far from the lighthouse."
    said = ["The harbour."] * 250 + ["The lighthouse."] * 250 + [both]
    rows = [ImportedMessage("user", (Text(text),), at - 1 if at else None) for at, text in enumerate(said)]
    await store.library.take_in(Imported("x", "Sea", tuple(rows), None))
    found = await store.library.search("harbour lighthouse")
    assert [hit.message.text for hit in found if hit.message] == [both]


async def test_what_is_in_the_trash_or_in_no_list_takes_no_place_of_what_is_found(
    store: ConversationStore,
) -> None:
    kept = await say(store, "Nothing of it. " * 200 + "The harbour.")
    rows = tuple(ImportedMessage("user", (Text("The harbour."),), None) for _ in range(250))
    thrown = await store.library.take_in(Imported("x", "Sea", rows, None))
    assert thrown is not None
    await store.library.discard(thrown.id)
    asked = {"instructions": None, "metadata": None}
    for _ in range(250):
        said = Message.of("user", "The harbour.")
        await store.responses.begin(None, said=[said], model="m", request=asked)
    assert [hit.conversation.id for hit in await store.library.search("harbour")] == [kept]


@pytest.mark.postgres
async def test_what_is_taken_out_of_the_trash_while_that_is_emptied_stays(store: ConversationStore) -> None:
    thrown = await say(store, "walrus")
    await store.library.discard(thrown)
    with acting_as("its-person"):
        async with store._database.write() as db:
            await db.execute(text("UPDATE conversations SET deleted_at = NULL"))
            with acting_as("who-empties"):
                emptying = asyncio.create_task(store.library.empty(everybody=True))
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            while not (await db.scalars(waiting)).one():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
    assert await emptying == 0
    assert [row.text for row in await store.path(thrown)] == ["walrus"]
