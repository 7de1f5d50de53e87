"""What people had read when the server was killed is there when it is back."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.messages import Message, Part, Reasoning, ReasoningDelta, Text, TextDelta
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.store import journal as journals
from rallychat.store.journal import Journal, recovered
from tests import postgres

deltas = st.lists(
    st.tuples(
        st.sampled_from(["m1", "m2"]), st.builds(TextDelta, st.text()) | st.builds(ReasoningDelta, st.text())
    ),
    max_size=20,
)


def expected(parts: tuple[Part, ...], added: list[TextDelta | ReasoningDelta]) -> tuple[Part, ...]:
    out = list(parts)
    for delta in added:
        kind = Text if isinstance(delta, TextDelta) else Reasoning
        if out and isinstance(out[-1], kind):
            out[-1] = kind(out[-1].text + delta.text)
        else:
            out.append(kind(delta.text))
    return tuple(out)


@given(deltas)
def test_a_journal_gives_back_what_was_added_message_by_message(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[str, TextDelta | ReasoningDelta]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "owner_x.journal"
    journal = Journal(path)
    begun: tuple[Part, ...] = (Text("so far "),)
    journal.begin("m1", begun)
    journal.begin("m2", ())
    for message, delta in added:
        journal.add(message, delta)
    wanted = {
        "m1": expected(begun, [delta for message, delta in added if message == "m1"]),
        "m2": expected((), [delta for message, delta in added if message == "m2"]),
    }
    assert recovered(path) == wanted
    journal.end("m1")
    assert path.exists()
    journal.end("m2")
    assert not path.exists()


def test_a_journal_in_which_something_always_grows_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "LIMIT", 4096)
    path = tmp_path / "owner_x.journal"
    journal = Journal(path)
    journal.begin("long", (Text("so far "),))
    for number in range(200):
        journal.begin(f"m{number}", ())
        for _ in range(20):
            journal.add(f"m{number}", TextDelta("word "))
        journal.add("long", ReasoningDelta("more "))
        if number:
            journal.end(f"m{number - 1}")
        assert path.stat().st_size < 4 * 4096
    found = recovered(path)
    assert found["long"] == (Text("so far "), Reasoning("more " * 200))
    assert found["m199"] == (Text("word " * 20),)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "torn", [b'{"add":"m1","ki', b"\xff\xfe\n", b'{"add":"unknown","kind":"text","text":"x"}\n', b"[]\n"]
)
def test_a_line_that_the_death_cut_or_that_means_nothing_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "owner_x.journal"
    journal = Journal(path)
    journal.begin("m1", ())
    journal.add("m1", TextDelta("whole"))
    with path.open("ab") as file:
        file.write(torn)
    assert recovered(path) == {"m1": (Text("whole"),)}


def test_no_journal_is_nothing_to_recover(tmp_path: Path) -> None:
    assert recovered(tmp_path / "none") == {}


def test_a_journal_that_cannot_be_written_does_not_end_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "nowhere" / "owner_x.journal")
    journal.begin("m1", ())
    journal.add("m1", TextDelta("a"))
    journal.end("m1")
    assert "cannot be written" in caplog.text


def test_a_disk_that_is_full_for_a_while_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, write, room = Journal(tmp_path / "j"), os.write, 1000

    def into_little_room(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", into_little_room)
    journal.begin("m1", ())
    room = 7  # the next line is cut, the one after it does not begin
    journal.add("m1", TextDelta("one "))
    journal.add("m1", TextDelta("two "))
    room = 1000
    journal.add("m1", TextDelta("three"))
    assert recovered(tmp_path / "j") == {"m1": (Text("one two three"),)}


VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from rallychat.messages import Message, TextDelta
from rallychat.settings import Settings
from rallychat.store import ConversationStore

async def main() -> None:
    async with ConversationStore.open(Settings(data_dir=Path(sys.argv[1]))) as store:
        conversation = await store.create()
        _, answer = await store.answers.begin(conversation.id, parent_id=None, user=Message.of("user", "hi"), model="m")
        store.journal.begin(answer.id, ())
        for word in ("never ", "saved ", "in the database"):
            store.journal.add(answer.id, TextDelta(word))
        print(conversation.id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def killed(folder: Path) -> str:
    """The conversation of a process that was killed amid an answer."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


async def assert_whole(store: ConversationStore, conversation_id: str) -> None:
    said, answer = await store.path(conversation_id)
    assert (said.message, answer.text) == (Message.of("user", "hi"), "never saved in the database")
    assert (answer.status, answer.finish_reason) == ("complete", "interrupted")


async def test_a_server_killed_between_two_saves_has_forgotten_nothing(tmp_path: Path) -> None:
    conversation = killed(tmp_path)
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        await assert_whole(store, conversation)
    assert list((tmp_path / "run").glob("*.journal")) == []


async def test_a_server_that_lives_on_keeps_the_last_words_of_a_killed_one_until_they_are_stored(
    tmp_path: Path,
) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        conversation = killed(tmp_path)
        assert await store.batches.claimable([]) == []  # as every server asks each second
        assert await store.leases.take("batches")
        assert await store.interrupt_orphans() == 1
        await assert_whole(store, conversation)
        left = tmp_path / "run" / "owner_nobody.journal"
        left.write_bytes(b"")
        await store.interrupt_orphans()
        assert list((tmp_path / "run").glob("*.journal")) == []


async def test_a_container_with_a_new_name_finds_the_last_words_on_its_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = killed(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        await postgres.lapsed()  # until then it may well live, on another machine
        await store.interrupt_orphans()
        await assert_whole(store, conversation)
