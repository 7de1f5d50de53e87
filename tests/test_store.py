"""The conversation tree: what each method stores and gives back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, update

from rallychat.catalog.types import Sampling
from rallychat.errors import Conflict, InvalidRequest, NotFound
from rallychat.messages import ContextReport, Message, Reasoning, Segment, Text, Timings, Usage
from rallychat.settings import Settings
from rallychat.store import Conversation, ConversationStore, StoredMessage, TokenSpan, branches, ids
from rallychat.store.ids import new_id
from rallychat.store.tables import conversations, messages


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as opened:
        yield opened


async def say(
    store: ConversationStore,
    conversation: Conversation,
    text: str,
    *,
    after: str | None = None,
    answer: str = "ok",
) -> tuple[StoredMessage, StoredMessage]:
    """One finished exchange under `after`."""
    asked, running = await store.answers.begin(
        conversation.id, parent_id=after, user=Message.of("user", text), model="echo"
    )
    assert asked is not None
    return asked, await end(store, running.id, answer)


async def end(store: ConversationStore, message_id: str, text: str) -> StoredMessage:
    return await store.answers.finish(
        message_id, parts=(Text(text),), reason="stop", usage=None, timings=None
    )


async def again(
    store: ConversationStore, conversation: Conversation, under: str, answer: str
) -> StoredMessage:
    _, running = await store.answers.begin(conversation.id, parent_id=under, user=None, model="echo")
    return await end(store, running.id, answer)


async def texts(store: ConversationStore, conversation: Conversation) -> list[str]:
    return [message.text for message in await store.path(conversation.id)]


async def test_a_new_conversation_is_given_back_as_it_was_made(store: ConversationStore) -> None:
    before = datetime.now(UTC)
    made = await store.create(
        title="Fish", system="Be brief.", model="m", sampling=Sampling(temperature=0.5, stop=("a", "b"))
    )
    assert made == Conversation(
        made.id,
        "Fish",
        "Be brief.",
        "m",
        Sampling(temperature=0.5, stop=("a", "b")),
        None,
        made.created_at,
        made.created_at,
    )
    assert before <= made.created_at <= datetime.now(UTC)
    assert made.id.startswith("conv_")
    assert await store.get(made.id) == made
    assert await store.path(made.id) == []


async def test_update_changes_what_is_given_and_none_is_a_value(store: ConversationStore) -> None:
    made = await store.create(title="a", system="b", model="c", sampling=Sampling(seed=1))
    assert await store.update(made.id) == made
    changed = await store.update(made.id, title="A", model=None)
    assert (changed.title, changed.system, changed.model, changed.sampling) == (
        "A",
        "b",
        None,
        Sampling(seed=1),
    )
    changed = await store.update(made.id, system="", sampling=Sampling())
    assert (changed.title, changed.system, changed.model, changed.sampling) == ("A", "", None, Sampling())
    assert await store.get(made.id) == changed


async def test_begin_stores_the_question_and_a_running_answer(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, answer = await store.answers.begin(
        conversation.id, parent_id=None, user=Message.of("user", "Why?"), model="echo"
    )
    assert asked is not None
    assert asked.message == Message.of("user", "Why?")
    assert (asked.parent_id, asked.status, asked.model) == (None, "complete", None)
    assert (answer.parent_id, answer.role, answer.status, answer.parts) == (
        asked.id,
        "assistant",
        "running",
        (),
    )
    assert (answer.model, answer.finish_reason, answer.usage) == ("echo", None, None)
    assert await store.path(conversation.id) == [asked, answer]
    assert (await store.get(conversation.id)).tip_id == answer.id


async def test_an_answer_grows_and_ends_with_all_that_is_known_of_it(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, answer = await store.answers.begin(
        conversation.id, parent_id=None, user=Message.of("user", "Why?"), model="echo"
    )
    assert asked is not None
    thinking = (Reasoning("hm"), Text("Beca"))
    await store.answers.save([(answer.id, thinking, TokenSpan("log", (1, 2**32 - 1)))])
    grown = await store.message(answer.id)
    assert (grown.parts, grown.span, grown.status) == (thinking, TokenSpan("log", (1, 2**32 - 1)), "running")
    report = ContextReport(
        "full",
        2048,
        1500,
        30,
        (Segment("user", asked.id, 20), Segment("generation", None, 10)),
        (asked.id,),
        (),
        4,
        "edited",
    )
    ended = await store.answers.finish(
        answer.id,
        parts=(Reasoning("hm"), Text("Because.")),
        reason="length",
        error="cut",
        usage=Usage(30, 5, 4),
        timings=Timings(0.5, 10.25, 99.0),
        report=report,
        span=TokenSpan("log", (1, 2, 3)),
    )
    assert (ended.text, ended.message.reasoning, ended.status) == ("Because.", "hm", "complete")
    assert (ended.finish_reason, ended.error) == ("length", "cut")
    assert (ended.usage, ended.timings, ended.report) == (Usage(30, 5, 4), Timings(0.5, 10.25, 99.0), report)
    assert ended.span == TokenSpan("log", (1, 2, 3))
    assert await store.message(answer.id) == ended
    assert (await store.path(conversation.id))[-1] == ended


async def test_only_the_last_message_of_a_path_carries_its_report(store: ConversationStore) -> None:
    conversation = await store.create()
    report = ContextReport("full", 1, 1, 1)
    _, first = await store.answers.begin(
        conversation.id, parent_id=None, user=Message.of("user", "1"), model="m"
    )
    await store.answers.finish(first.id, parts=(), reason="stop", usage=None, timings=None, report=report)
    await say(store, conversation, "2", after=first.id)
    assert [m.report for m in await store.path(conversation.id)] == [None, None, None, None]
    assert (await store.path(conversation.id, tip=first.id))[-1].report == report
    assert (await store.message(first.id)).report == report


async def test_saving_replaces_the_span_and_leaves_ended_or_deleted_answers_alone(
    store: ConversationStore,
) -> None:
    conversation, other = await store.create(), await store.create()
    _, running = await store.answers.begin(conversation.id, parent_id=None, user=None, model="m")
    _, gone = await store.answers.begin(other.id, parent_id=None, user=None, model="m")
    await store.answers.save([(running.id, (Text("a"),), TokenSpan("k", (1,)))])
    await store.delete(other.id)
    await store.answers.save([(gone.id, (Text("x"),), None), (running.id, (Text("ab"),), None)])
    assert ((await store.message(running.id)).text, (await store.message(running.id)).span) == ("ab", None)
    ended = await end(store, running.id, "abc")
    await store.answers.save([(running.id, (Text("late"),), None)])
    assert await store.message(running.id) == ended
    with pytest.raises(NotFound, match=gone.id):
        await end(store, gone.id, "x")


async def test_an_answer_ends_once(store: ConversationStore) -> None:
    conversation = await store.create()
    _, answer = await say(store, conversation, "hi", answer="first")
    with pytest.raises(Conflict, match="ended already"):
        await end(store, answer.id, "second")
    assert (await store.message(answer.id)).text == "first"


async def test_regenerating_keeps_both_answers_and_select_goes_back(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, first = await say(store, conversation, "hi", answer="one")
    await say(store, conversation, "more", after=first.id, answer="two")
    second = await again(store, conversation, asked.id, "ONE")
    assert await texts(store, conversation) == ["hi", "ONE"]
    assert await store.siblings(first.id) == await store.siblings(second.id) == [first.id, second.id]
    tip = await store.select(conversation.id, first.id)
    assert await texts(store, conversation) == ["hi", "one", "more", "two"]
    assert (await store.get(conversation.id)).tip_id == tip
    assert await store.siblings(asked.id) == [asked.id]


async def test_select_takes_the_newest_leaf_below(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, first = await say(store, conversation, "hi", answer="one")
    await again(store, conversation, asked.id, "newer sibling")
    await say(store, conversation, "deep", after=first.id, answer="newest leaf")
    await store.select(conversation.id, asked.id)
    assert await texts(store, conversation) == ["hi", "one", "deep", "newest leaf"]


async def test_editing_the_first_question_makes_a_second_root(store: ConversationStore) -> None:
    conversation, other = await store.create(), await store.create()
    old, _ = await say(store, conversation, "old")
    await say(store, other, "elsewhere")
    new, _ = await say(store, conversation, "new")
    assert await store.siblings(old.id) == [old.id, new.id]
    assert await texts(store, conversation) == ["new", "ok"]


async def test_continuing_sets_an_ended_answer_running_with_its_text(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, first = await say(store, conversation, "hi", answer="one")
    other = await again(store, conversation, asked.id, "other")
    running = await store.answers.resume(first.id)
    assert (running.status, running.text, running.finish_reason) == ("running", "one", None)
    assert await store.message(first.id) == running
    assert await texts(store, conversation) == ["hi", "one"]
    await end(store, first.id, "one two")
    assert await texts(store, conversation) == ["hi", "one two"]
    assert (await store.message(other.id)).text == "other"


async def test_only_an_ended_answer_at_the_end_of_its_branch_can_be_continued(
    store: ConversationStore,
) -> None:
    conversation = await store.create()
    asked, answer = await say(store, conversation, "hi")
    _, running = await store.answers.begin(
        conversation.id, parent_id=answer.id, user=Message.of("user", "x"), model="m"
    )
    for message_id, why in (
        (asked.id, "not an answer"),
        (answer.id, "followed"),
        (running.id, "still being"),
    ):
        with pytest.raises(Conflict, match=why):
            await store.answers.resume(message_id)


async def test_nothing_is_said_under_a_running_answer(store: ConversationStore) -> None:
    conversation = await store.create()
    _, running = await store.answers.begin(
        conversation.id, parent_id=None, user=Message.of("user", "x"), model="m"
    )
    with pytest.raises(Conflict, match="still being written"):
        await store.answers.begin(
            conversation.id, parent_id=running.id, user=Message.of("user", "y"), model="m"
        )
    assert len(await store.path(conversation.id)) == 2


async def test_another_conversations_message_is_not_found_in_this_one(store: ConversationStore) -> None:
    conversation, other = await store.create(), await store.create()
    asked, answer = await say(store, other, "hi")
    for refused in (
        store.path(conversation.id, tip=answer.id),
        store.select(conversation.id, answer.id),
        store.answers.begin(conversation.id, parent_id=asked.id, user=None, model="m"),
    ):
        with pytest.raises(NotFound, match="message"):
            await refused
    assert await store.path(conversation.id) == []


@pytest.mark.parametrize("name", ["conv_0", "", "\ud800", "a\0b", "x" * 10_000, "' OR 1=1 --"])
async def test_an_unknown_id_is_not_found_whatever_it_holds(store: ConversationStore, name: str) -> None:
    known = await store.create()
    for asked in (
        store.get(name),
        store.update(name, title="x"),
        store.delete(name),
        store.message(name),
        store.path(name),
        store.path(known.id, tip=name),
        store.siblings(name),
        store.select(known.id, name),
        store.answers.resume(name),
        store.answers.begin(name, parent_id=None, user=None, model="m"),
        store.answers.begin(known.id, parent_id=name, user=None, model="m"),
        store.list(before=name),
    ):
        with pytest.raises(NotFound):
            await asked


async def test_deleting_takes_the_messages_of_every_branch_and_no_other(store: ConversationStore) -> None:
    conversation, other = await store.create(), await store.create()
    asked, answer = await say(store, conversation, "hi")
    sibling = await again(store, conversation, asked.id, "x")
    await say(store, other, "stays")
    await store.delete(conversation.id)
    for message_id in (asked.id, answer.id, sibling.id):
        with pytest.raises(NotFound):
            await store.message(message_id)
    assert await store.list() == [await store.get(other.id)]
    assert await texts(store, other) == ["stays", "ok"]


async def test_the_list_has_the_last_active_first_and_goes_on_after_an_id(store: ConversationStore) -> None:
    made = [await store.create(title=str(n)) for n in range(5)]
    await say(store, made[1], "hi")
    await store.update(made[0].id, title="renamed")
    order = ["1", "4", "3", "2", "renamed"]
    assert [c.title for c in await store.list()] == order
    pages: list[str] = []
    page = await store.list(limit=2)
    while page:
        pages += [c.title for c in page]
        page = await store.list(limit=2, before=page[-1].id)
    assert pages == order
    with pytest.raises(InvalidRequest, match="limit"):
        await store.list(limit=0)


async def test_conversations_of_the_same_moment_are_listed_once_each(store: ConversationStore) -> None:
    made = [await store.create() for _ in range(5)]
    async with store._database.write() as db:
        await db.execute(update(conversations).values(updated_at=made[0].created_at))
    pages = [await store.list(limit=2)]
    while pages[-1]:
        pages.append(await store.list(limit=2, before=pages[-1][-1].id))
    assert [c.id for page in pages for c in page] == [c.id for c in reversed(made)]


async def test_spans_are_kept_beside_messages(store: ConversationStore) -> None:
    conversation = await store.create()
    asked, answer = await say(store, conversation, "hi")
    await store.save_spans(
        {asked.id: TokenSpan("k", (5, 6)), answer.id: TokenSpan("k", ()), "msg_0": TokenSpan("k", ())}
    )
    assert [m.span for m in await store.path(conversation.id)] == [TokenSpan("k", (5, 6)), TokenSpan("k", ())]


@pytest.mark.parametrize(
    ("text", "why"), [("a\0b", "NUL"), ("a\ud800", "half of a character"), ("\udc00b", "U\\+DC00")]
)
async def test_a_persons_text_that_cannot_be_stored_is_refused_and_nothing_is_half_stored(
    store: ConversationStore, text: str, why: str
) -> None:
    conversation = await store.create()
    for refused in (
        store.create(title=text),
        store.create(system=text),
        store.create(sampling=Sampling(stop=("x", text))),
        store.update(conversation.id, title="new", model=text),
        store.answers.begin(conversation.id, parent_id=None, user=Message.of("user", text), model="m"),
        store.answers.begin(conversation.id, parent_id=None, user=Message.of("user", "fine"), model=text),
    ):
        with pytest.raises(InvalidRequest, match=why):
            await refused
    assert await store.list() == [conversation]
    assert await store.path(conversation.id) == []


async def test_an_integer_that_json_cannot_hold_is_refused(store: ConversationStore) -> None:
    with pytest.raises(InvalidRequest, match="64-bit"):
        await store.create(sampling=Sampling(seed=2**64))
    assert await store.list() == []


async def test_a_models_text_is_mended_so_that_no_answer_is_lost(store: ConversationStore) -> None:
    conversation = await store.create()
    _, answer = await store.answers.begin(conversation.id, parent_id=None, user=None, model="m")
    await store.answers.save([(answer.id, (Text("a\0b\ud800c \ud83d\ude00"),), None)])
    assert (await store.message(answer.id)).text == "a\ufffdb\ufffdc \U0001f600"
    ended = await store.answers.finish(
        answer.id, parts=(Reasoning("\udfff"),), reason="error", error="\0\ud800", usage=None, timings=None
    )
    assert (ended.message.reasoning, ended.error) == ("\ufffd", "\ufffd\ufffd")
    assert await store.message(answer.id) == ended


async def test_a_long_conversation_is_read_and_deleted_whole(store: ConversationStore) -> None:
    conversation = await store.create()
    parent: str | None = None
    rows: list[dict[str, Any]] = []
    for n in range(3_000):  # SQLite follows a cascade no deeper than 1,000
        id_ = new_id("msg", after=parent)
        part = {"kind": "text", "text": str(n)}
        rows.append({"id": id_, "parent_id": parent, "role": "user", "status": "complete", "parts": [part]})
        parent = id_
    common = {"conversation_id": conversation.id, "created_at": conversation.created_at}
    async with store._database.write() as db:
        await db.execute(insert(messages), [row | common for row in rows])
    assert await store.select(conversation.id, rows[0]["id"]) == parent
    assert await texts(store, conversation) == [str(n) for n in range(3_000)]
    await store.delete(conversation.id)
    with pytest.raises(NotFound):
        await store.message(rows[1_500]["id"])


async def test_a_megabyte_is_a_message_like_any_other(store: ConversationStore) -> None:
    conversation = await store.create()
    long = "🐟 fish\r\n\t\u2028" * 100_000
    asked, answer = await say(store, conversation, long, answer=long)
    assert (await store.message(asked.id)).text == (await store.message(answer.id)).text == long


async def test_ids_sort_by_age_even_where_the_clock_was_set_back(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await store.create()
    asked, first = await say(store, conversation, "1")
    monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=lambda: 10**9))  # 1970
    second = await again(store, conversation, asked.id, "2")
    later, _ = await say(store, conversation, "3", after=first.id)
    assert await store.siblings(first.id) == [first.id, second.id]
    assert [m.text for m in await store.path(conversation.id)] == ["1", "ok", "3", "ok"]
    assert asked.id < first.id < second.id < later.id


async def test_a_branch_is_read_whole_though_another_reader_drops_what_was_kept_of_it(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = await store.create()
    await say(store, conversation, "one")
    await say(store, conversation, "two")
    whole = await store.path(conversation.id)
    read = branches._read

    async def dropped(*given: Any, **asked: Any) -> Any:
        store._branches._kept.clear()
        return await read(*given, **asked)

    monkeypatch.setattr(branches, "_read", dropped)
    assert await store.path(conversation.id) == whole
