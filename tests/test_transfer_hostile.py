"""Files that nobody exported: whatever is in one, it is refused in a sentence, soon, and the server lives on."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import zipfile
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import IO, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallychat.errors import InvalidRequest
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.transfer import chatgpt, import_file, importing, openwebui, ours
from rallychat.transfer.records import NotJson, records
from rallychat.transfer.trees import Read, when


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path / "data")) as opened:
        yield opened


def zipped(held: bytes) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", held)
    return bytearray(packed.getvalue())


def marked(archive: bytearray, *, at: int, with_: int) -> bytes:
    """The archive with one byte of its only member's two headers changed; `at` counts in the local one."""
    archive[archive.find(b"PK\x03\x04") + at] = with_
    archive[archive.find(b"PK\x01\x02") + at + 2] = with_
    return bytes(archive)


ONE = b'[{"messages": [{"role": "user", "content": "hi"}]}]'
MANY = json.dumps([{"messages": [{"role": "user", "content": f"{at}" * 9} for at in range(500)]}]).encode()


def torn() -> bytes:
    archive = zipped(MANY)
    archive[300:340] = bytes(byte ^ 0xFF for byte in archive[300:340])
    return bytes(archive)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b'[{"messages": [], "id": ' + b"9" * 6000 + b"}]", "a number is too long"),
        (b'[{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'[{"messages": NaN}]', "or is none"),
        (b'[{"messages": "\xff"}]', "not UTF-8"),
        (b"[1 2]", "'2' stands where , or ] should be"),
        (torn(), "damaged"),
        (marked(zipped(ONE), at=6, with_=1), "locked"),
        (marked(zipped(ONE), at=8, with_=97), "packed in an unknown way"),
        (marked(zipped(ONE), at=8, with_=12), "damaged"),
        (marked(zipped(ONE), at=8, with_=14), "damaged"),
    ],
    ids=["digits", "lists", "objects", "nan", "bytes", "comma", "torn", "locked", "unknown", "bzip", "lzma"],
)
async def test_what_breaks_readers_is_refused_in_one_sentence(
    store: ConversationStore, tmp_path: Path, held: bytes, said: str
) -> None:
    (tmp_path / "file").write_bytes(held)
    with pytest.raises(InvalidRequest, match=said):
        await import_file(store, tmp_path / "file")


async def test_a_bomb_in_a_zip_is_refused_before_it_fills_the_memory(
    store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.transfer.records.LONGEST", 100_000)
    (tmp_path / "file").write_bytes(zipped(b'[{"messages": "' + b"a" * 10_000_000 + b'"}]'))
    with pytest.raises(InvalidRequest, match="longer than 100000 characters"):
        await import_file(store, tmp_path / "file")


async def test_nothing_in_the_middle_of_a_list_ends_it(store: ConversationStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"[null, false, 0," + ONE[1:])
    report = await import_file(store, tmp_path / "file")
    assert (report.imported, report.failed) == (1, 3)


_KNOWN = """mapping message author role content content_type parts parent current_node metadata recipient thoughts
    summary text language chat history messages currentId parentId files params system model timestamp created_at
    title create_time id conversation sampling tip folder type kind pinned finish_reason error usage timings mark status
    metadata strategy budget elsewhere memories until covers active"""
NAMES = st.sampled_from(_KNOWN.split())
WORDS = st.sampled_from(
    ["user", "assistant", "system", "tool", "text", "code", "thoughts", "a", "b", "\0", "\ud800"]
)
NUMBERS = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), WORDS, NUMBERS),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(NAMES | WORDS, below, max_size=5)),
    max_leaves=25,
)
SAID = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("role", "content", "parts", "files", "parent", "finish_reason", "usage", "mark", "error"), VALUES
    ),
)
MESSAGE = st.fixed_dictionaries(
    {
        "author": st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | VALUES}),
        "content": st.dictionaries(st.sampled_from(["content_type", "parts", "thoughts", "text"]), VALUES),
    }
)
NODES = st.dictionaries(
    WORDS, st.fixed_dictionaries({"message": MESSAGE | VALUES, "parent": VALUES}), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(VALUES, NODES, st.lists(SAID, max_size=3), st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_conversation_of_any_shape_is_read_or_refused(
    any_: Any, nodes: Any, said: list[Any], rest: dict[str, Any]
) -> None:
    named = dict(zip("abc", said, strict=False))
    shapes = [
        (chatgpt.read, rest | {"mapping": any_}),
        (chatgpt.read, rest | {"mapping": nodes}),
        (openwebui.read, rest | {"chat": any_}),
        (openwebui.read, rest | {"chat": {"history": {"messages": named}}}),
        (ours.read, rest | {"messages": any_}),
        (ours.read, rest | {"messages": said}),
        (ours.read, rest | {"messages": said, "tip": None, "memories": any_}),
    ]
    for read, record in shapes:
        with suppress(InvalidRequest):
            assert isinstance(read(record), Read)


@settings(deadline=None)
@given(VALUES, st.integers(1, 7), st.sampled_from([None, 1]))
def test_a_file_is_read_the_same_wherever_its_pieces_end(value: Any, piece: int, indent: int | None) -> None:
    class Slow(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(piece)

    def read(whole: Any) -> list[Any]:
        return list(records(Slow(json.dumps(whole, indent=indent).encode())))

    assert read([value, value]) == [value, value]
    assert read({"format": value, "conversations": [value], "more": value}) == [value]
    assert read({"title": value, "messages": value}) == [{"title": value, "messages": value}]


def test_a_file_that_is_one_conversation_is_whole_whatever_stands_first() -> None:
    one = {"id": "x" * 200_000, "title": "t", "mapping": {}}
    assert list(records(io.BytesIO(json.dumps(one).encode()))) == [one]
    with pytest.raises(NotJson):
        list(records(io.BytesIO(json.dumps(one).encode()[:-1])))


@pytest.mark.parametrize("fold", ['<details type="reasoning">', '<details type="reasoning">' + " " * 9])
def test_folds_without_an_end_are_read_in_one_go(fold: str) -> None:
    """A search that begins anew at each of them would take minutes, and nobody else's answer would go on."""
    unended = {"role": "assistant", "content": fold * 40_000}
    spaced = {"role": "assistant", "content": f"{fold}{' ' * 400_000}</details>answer"}
    for node in (unended, spaced):
        made = openwebui.read({"chat": {"history": {"messages": {"a": node}}}}).conversation
        assert len(made.messages) == 1


@pytest.mark.parametrize(
    "value",
    [float("inf"), float("-inf"), 10**400, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "soon"],
)
def test_a_time_that_is_none_is_left_out(value: Any) -> None:
    read = when(value)
    assert read is None or read.astimezone(UTC)


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", -62_000_000_000])
def test_a_time_that_some_clock_cannot_show_is_left_out(value: Any) -> None:
    read = when(value)
    for minutes in (-840, 840):
        assert read is None or read.astimezone(timezone(timedelta(minutes=minutes)))
    assert when("1970-01-01T00:00:00Z") is not None


@pytest.mark.parametrize(
    "record",
    [
        {"mapping": {"\ud800": 1}},
        {"messages": [{"role": "user", "content": "hi"}], "sampling": {"\ud800": 1}},
    ],
)
async def test_a_name_that_is_no_text_is_reported_as_one(
    store: ConversationStore, tmp_path: Path, record: Any
) -> None:
    (tmp_path / "file").write_text(json.dumps([record]))
    report = await import_file(store, tmp_path / "file")
    assert report.failed == 1
    assert orjson.dumps(report.problems)


@pytest.mark.parametrize(
    ("message", "about", "named"),
    [
        ({"finish_reason": "tired"}, {}, "'messages.0.finish_reason': Input should be 'stop'"),
        ({"usage": {"prompt_tokens": -1}}, {}, "'messages.0.usage.prompt_tokens': Input should be greater"),
        ({"usage": {"prompt_tokens": 2**40}}, {}, "'messages.0.usage.prompt_tokens': Input should be less"),
        ({"usage": [1]}, {}, "'messages.0.usage': Input should be"),
        ({"timings": {"total_ms": "1"}}, {}, "'messages.0.timings.total_ms': Input should be a valid number"),
        ({"mark": "star"}, {}, "'messages.0.mark': Input should be 'pin' or 'exclude'"),
        ({"error": 7}, {}, "'messages.0.error': Input should be a valid string"),
        ({}, {"budget": 10}, "'budget': Input should be greater"),
        ({}, {"budget": 2**31}, "'budget': Input should be less"),
        ({}, {"elsewhere": 1}, "'elsewhere': Input should be a valid boolean"),
        ({}, {"metadata": {"a": 1}}, "'metadata.a': Input should be a valid string"),
        ({}, {"metadata": {str(n): "" for n in range(17)}}, "'metadata': Dictionary should have at most 16"),
        ({}, {"metadata": {"a": "\0"}}, "'metadata' holds a NUL character"),
        ({}, {"memories": {}}, "'memories' is no list of at most 10000 versions"),
        ({}, {"memories": [{}] * 10_001}, "'memories' is no list of at most 10000 versions"),
        ({}, {"memories": [{"kind": "ledger", "text": ""}]}, "'memories.0.until': Field required"),
        ({}, {"memories": [3]}, "'memories.0': Input should be"),
    ],
)
async def test_what_is_wrong_of_how_it_was_kept_is_named(
    store: ConversationStore, tmp_path: Path, message: Any, about: Any, named: str
) -> None:
    said = {"id": "q", "role": "assistant", "parts": [{"kind": "text", "text": "hi"}], **message}
    (tmp_path / "file").write_text(json.dumps([{"tip": "q", "messages": [said], **about}]))
    report = await import_file(store, tmp_path / "file")
    assert (report.failed, await store.list()) == (1, [])
    assert report.problems[0].startswith(f"Conversation 1 was left out: {named}")


async def test_an_import_may_be_cancelled_while_it_reads(
    store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, on = threading.Event(), threading.Event()

    def slow(_: IO[bytes]) -> Generator[Any]:
        reading.set()
        on.wait(60)
        yield {}

    monkeypatch.setattr(importing, "records", slow)
    (tmp_path / "file").write_bytes(ONE)
    task = asyncio.create_task(import_file(store, tmp_path / "file"))
    try:
        await asyncio.to_thread(reading.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        on.set()
