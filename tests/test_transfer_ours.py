"""Our own format: what is exported comes in again as it was."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.context import strategies
from rallychat.identity import acting_as, current
from rallychat.messages import FinishReason, Message, Reasoning, Role, Text, Timings, Usage
from rallychat.settings import Settings
from rallychat.store import ConversationStore, Ending, Entire, Imported, ImportedMessage, Memory, Shelf
from rallychat.store.types import Mark, MemoryKind
from rallychat.transfer import as_json, document, everything, import_file


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path / "data")) as opened:
        yield opened


def written(folder: Path, what: Any) -> Path:
    path = folder / "file.json"
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
    return path


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
COUNTS, TIMES = st.integers(0, 2**31 - 1), st.floats(0, 1e9)
ENDINGS = st.builds(
    Ending,
    st.sampled_from(get_args(FinishReason)),
    st.none() | TEXTS,
    st.none() | st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS),
    st.none() | st.builds(Timings, TIMES, TIMES, TIMES),
)
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant", "system"])
MARKS: st.SearchStrategy[Mark | None] = st.sampled_from([None, "pin", "exclude"])
PARTS = st.lists(st.builds(Text, TEXTS) | st.builds(Reasoning, TEXTS), max_size=3).map(tuple)


@st.composite
def brought(draw: st.DrawFn) -> Imported:
    """Any conversation that the store can hold."""
    nodes: list[ImportedMessage] = []
    for at in range(draw(st.integers(1, 12))):
        above = draw(st.integers(0, at))
        role, end, mark = draw(ROLES), draw(ENDINGS), draw(MARKS)
        made = ImportedMessage(
            role, draw(PARTS), above - 1 if above else None, name=str(at), end=end, mark=mark
        )
        nodes.append(made)
    names = st.sampled_from([node.name for node in nodes])
    memory = st.builds(
        Memory,
        st.sampled_from(get_args(MemoryKind)),
        TEXTS,
        names,
        st.lists(names, max_size=4).map(tuple),
        st.sampled_from(["rules", "model", "user"]),
        TEXTS,
        active=st.booleans(),
    )
    return Imported(
        f"t:{draw(st.uuids())}",
        "T",
        tuple(nodes),
        draw(st.integers(0, len(nodes) - 1)),
        metadata=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        strategy=draw(st.none() | st.sampled_from(strategies.names())),
        budget=draw(st.none() | st.integers(64, 2**31 - 1)),
        elsewhere=draw(st.none() | st.booleans()),
        memories=tuple(draw(st.lists(memory, max_size=3))),
    )


def nameless(entire: Entire) -> Any:
    """Its export with places for ids."""
    said = json.dumps(as_json(entire)).replace(entire.conversation.id, "here")
    for at, row in enumerate(entire.messages):
        said = said.replace(row.id, f"message {at}")
    return json.loads(said)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(brought(), st.booleans())
async def test_what_is_exported_comes_in_again_as_it_was(
    store: ConversationStore, tmp_path: Path, tree: Imported, with_everything: bool
) -> None:
    first = await store.library.take_in(tree)
    assert first is not None
    entire = await store.library.entire(first.id)
    if with_everything:
        path = tmp_path / f"{first.id}.zip"
        await store.belongings.export(current().id, path)
    else:
        path = written(tmp_path, document([as_json(entire)]))
    assert (await import_file(store, path)).already_here == 1
    with acting_as("somebody-else"):
        assert not (await import_file(store, path)).problems
        (copy,) = await store.list()
        assert nameless(await store.library.entire(copy.id)) == nameless(entire)
        await store.library.erase(copy.id)
    await store.library.erase(first.id)


async def test_an_answer_comes_in_as_it_ended_and_one_that_still_grows_as_interrupted(
    store: ConversationStore, tmp_path: Path
) -> None:
    chat = (await store.create()).id
    asked, failed = await store.answers.begin(
        chat, parent_id=None, user=Message.of("user", "Hi"), model="echo"
    )
    assert asked is not None
    ended: dict[str, Any] = {"parts": (), "usage": None, "timings": None}
    await store.answers.finish(failed.id, reason="error", error="It broke.", **ended)
    _, growing = await store.answers.begin(chat, parent_id=asked.id, user=None, model="echo")
    await store.answers.save([(growing.id, (Text("Half an"),), None)])
    path = written(tmp_path, b"".join([piece async for piece in everything(store)]))
    with acting_as("somebody-else"):
        await import_file(store, path)
        (copy,) = await store.list()
        _, *answers = (await store.library.entire(copy.id)).messages
        assert [(row.text, row.status, row.finish_reason, row.error) for row in answers] == [
            ("", "complete", "error", "It broke."),
            ("Half an", "complete", "interrupted", None),
        ]
        assert copy.tip_id == answers[1].id
    await store.answers.finish(growing.id, reason="stop", **ended)


async def test_what_was_in_the_trash_comes_into_the_trash(store: ConversationStore, tmp_path: Path) -> None:
    chat = await store.create(title="Terns", said=[Message.of("user", "Hi")])
    await store.library.discard(chat.id)
    await store.belongings.export(current().id, tmp_path / "all.zip")
    with acting_as("somebody-else"):
        assert (await import_file(store, tmp_path / "all.zip")).imported == 1
        assert await store.list() == []
        (copy,) = await store.library.list(Shelf(trash=True))
        assert [row.text for row in (await store.path((await store.library.restore(copy.id)).id))] == ["Hi"]


async def test_an_export_from_before_answers_said_how_they_ended_is_read(
    store: ConversationStore, tmp_path: Path
) -> None:
    said = [
        {"id": "q", "parent": None, "role": "user", "parts": [{"kind": "text", "text": "Hi"}]},
        {"id": "a", "parent": "q", "role": "assistant", "parts": [{"kind": "text", "text": "Ho"}]},
    ]
    report = await import_file(store, written(tmp_path, [{"id": "c", "tip": "a", "messages": said}]))
    (made,) = await store.list()
    assert [(row.text, row.finish_reason) for row in await store.path(made.id)] == [
        ("Hi", None),
        ("Ho", "stop"),
    ]
    assert not report.problems


async def test_what_only_an_export_of_ours_says_is_not_looked_for_in_a_list_from_elsewhere(
    store: ConversationStore, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "hi", "status": "completed", "usage": 7, "mark": "?"}]
    record = {"messages": said, "metadata": {"line": 3}, "memories": 4, "budget": "none"}
    assert not (await import_file(store, written(tmp_path, record))).problems
    assert len(await store.list()) == 1


async def test_a_strategy_that_is_not_known_and_memories_of_other_messages_are_named_as_left_out(
    store: ConversationStore, tmp_path: Path
) -> None:
    said = {"id": "q", "role": "user", "parts": [{"kind": "text", "text": "Hi"}]}
    memory = {"kind": "ledger", "text": "User: Hi", "until": "q"}
    memories = [memory, memory | {"until": "gone"}, memory | {"covers": ["q", "gone"]}]
    record = {"tip": "q", "messages": [said], "memories": memories, "strategy": "of_my_own"}
    report = await import_file(store, written(tmp_path, record))
    assert report.left_out == {
        "memories of messages that are not there": 2,
        "strategies that are not known here": 1,
    }
    (made,) = await store.list()
    assert [one.version for one in await store.contexts.memories(made.id)] == [1]
