"""What survives: kills, a second process, a full disk, a damaged or foreign file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.errors import Conflict, RallyChatError, StoreError
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, StoredMessage, TokenSpan

WRITER = """
import asyncio, sys
from pathlib import Path
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore, TokenSpan

async def main(folder):
    async with ConversationStore.open(Settings(data_dir=folder)) as store:
        conversation = await store.create()
        running = []
        for n in range(8):
            user = Message.of("user", f"question {n}")
            running.append((await store.answers.begin(conversation.id, parent_id=None, user=user, model="m"))[1].id)
        print(conversation.id, flush=True)
        for step in range(1_000_000):
            grown = (Text("word " * step),)
            await store.answers.save([(id, grown, TokenSpan("log", tuple(range(step)))) for id in running])
            print(step, flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@contextmanager
def writer(folder: Path) -> Generator[subprocess.Popen[str]]:
    """Another process that writes 8 growing answers and says how many words are saved; killed at the end."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def answers(store: ConversationStore, conversation_id: str) -> list[StoredMessage]:
    """Every answer of `WRITER`, each on a branch of its own."""
    conversation = await store.get(conversation_id)
    path = await store.path(conversation_id)
    assert conversation.tip_id == path[-1].id
    found = []
    for root in await store.siblings(path[0].id):
        await store.select(conversation_id, root)
        found.append((await store.path(conversation_id))[-1])
    return found


async def test_all_that_was_saved_is_there_after_a_kill_and_marked_interrupted(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        conversation_id = line(process)
        saved = [int(line(process)) for _ in range(25)][-1]
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        found = await answers(store, conversation_id)
        assert len(found) == 8
        for answer in found:
            assert (answer.status, answer.finish_reason) == ("complete", "interrupted")
            assert answer.error == "The server stopped before this answer was finished."
            words = answer.text.count("word ")
            assert words >= saved
            assert answer.span == TokenSpan("log", tuple(range(words)))
            resumed = await store.answers.resume(answer.id)
            assert resumed.text == answer.text
        questions = [(await store.message(a.parent_id or "")).text for a in found]
        assert questions == [f"question {n}" for n in range(8)]


async def test_a_live_process_keeps_its_answers_until_it_dies(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        conversation_id = line(process)
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
            mine, running = await store.answers.begin(
                conversation_id, parent_id=None, user=Message.of("user", "me too"), model="m"
            )
            assert mine is not None
            theirs = [a for a in await answers(store, conversation_id) if a.id != running.id]
            assert [a.status for a in theirs] == ["running"] * 8
            assert await store.interrupt_orphans() == 0
            with pytest.raises(Conflict, match=r"still being written"):
                await store.answers.resume(theirs[0].id)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert (await store.answers.resume(theirs[0].id)).status == "running"
            assert (await store.message(theirs[1].id)).finish_reason == "interrupted"
            assert (await store.message(running.id)).status == "running"
    assert {path.name for path in (tmp_path / "run").iterdir()} - {"place"} == {"store.lock"}


async def test_two_stores_write_the_same_conversation(tmp_path: Path) -> None:
    where = Settings(data_dir=tmp_path)
    async with ConversationStore.open(where) as one, ConversationStore.open(where) as two:
        conversation = await one.create()
        pairs = await asyncio.gather(
            *(
                store.answers.begin(
                    conversation.id, parent_id=None, user=Message.of("user", str(n)), model="m"
                )
                for n in range(40)
                for store in (one, two)
            )
        )
        await one.answers.save([(answer.id, (Text("x"),), None) for _, answer in pairs])
        texts = [(await two.message(answer.id)).text for _, answer in pairs]
        assert texts == ["x", ""] * 40  # each writes its own answers only
        assert len(await one.siblings(pairs[0][0].id if pairs[0][0] else "")) == 80


async def test_many_open_a_new_folder_at_once(tmp_path: Path) -> None:
    async def once(n: int) -> str:
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
            return (await store.create(title=str(n))).id

    made = await asyncio.gather(*(once(n) for n in range(6)))
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        assert {c.id for c in await store.list()} == set(made)


async def test_an_answer_left_running_by_a_closed_store_is_interrupted_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        conversation = await store.create()
        _, answer = await store.answers.begin(conversation.id, parent_id=None, user=None, model="m")
        await store.answers.save([(answer.id, (Text("half"),), None)])
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        [found] = await store.path(conversation.id)
        assert (found.text, found.finish_reason, found.status) == ("half", "interrupted", "complete")


async def test_an_answer_taken_for_interrupted_by_mistake_can_still_be_ended(tmp_path: Path) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        conversation = await store.create()
        _, answer = await store.answers.begin(conversation.id, parent_id=None, user=None, model="m")
        for file in (tmp_path / "run").glob("owner_*"):
            file.unlink()
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as other:
            assert (await other.message(answer.id)).finish_reason == "interrupted"
        await store.answers.finish(answer.id, parts=(Text("all"),), reason="stop", usage=None, timings=None)
        assert [(m.text, m.finish_reason) for m in await store.path(conversation.id)] == [("all", "stop")]


@pytest.mark.parametrize("steps", range(0, 60, 6))
async def test_a_cancelled_turn_is_stored_whole_or_not_and_leaves_nothing_running(
    tmp_path: Path, steps: int
) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        conversation = await store.create()
        user = Message.of("user", "hi")
        turn = asyncio.create_task(store.answers.begin(conversation.id, parent_id=None, user=user, model="m"))
        for _ in range(steps):
            await asyncio.sleep(0)
        cancelled = turn.cancel()  # not where it had ended in fewer steps
        with pytest.raises(asyncio.CancelledError) if cancelled else nullcontext():
            await turn
        stored = [(m.role, m.status, m.finish_reason) for m in await store.path(conversation.id)]
        asked = ("user", "complete", None)
        whole = [asked, ("assistant", "complete", "interrupted")]
        assert stored in (([], whole) if cancelled else ([asked, ("assistant", "running", None)],))
        await store.update(conversation.id, title="still writable")


# --- the file cannot be used ------------------------------------------------------------------------------


async def opens(where: Settings, **options: Any) -> None:
    async with ConversationStore.open(where, **options) as store:
        for conversation in await store.list():
            for message in await store.path(conversation.id):
                await store.message(message.id)
                await store.siblings(message.id)


async def filled(folder: Path) -> Path:
    """A database with something in it, closed; returns its file."""
    where = Settings(data_dir=folder)
    async with ConversationStore.open(where) as store:
        conversation = await store.create(title="t" * 100)
        parent = None
        for n in range(30):
            user = Message.of("user", f"question {n} " * 20)
            _, answer = await store.answers.begin(conversation.id, parent_id=parent, user=user, model="m")
            await store.answers.finish(
                answer.id, parts=(Text("answer " * 50),), reason="stop", usage=None, timings=None
            )
            parent = answer.id
    return where.database


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as one" * 100, b"SQLite format 3\0oops"]
)
async def test_a_file_that_is_no_database_is_named_and_left_as_it_is(
    tmp_path: Path, where: Settings, content: bytes
) -> None:
    (tmp_path / "rallychat.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"is not a database.*left as it is"):
        await opens(where)
    assert (tmp_path / "rallychat.db").read_bytes() == content


@pytest.mark.sqlite
async def test_somebody_elses_database_is_left_as_it_is(tmp_path: Path, where: Settings) -> None:
    with sqlite3.connect(tmp_path / "rallychat.db") as other:
        other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(StoreError, match=r"something other than RallyChat"):
        await opens(where)
    with sqlite3.connect(tmp_path / "rallychat.db") as other:
        assert [row[0] for row in other.execute("SELECT name FROM sqlite_schema")] == ["recipes"]
    other.close()


@pytest.mark.sqlite
async def test_a_database_of_a_later_version_is_left_as_it_is(tmp_path: Path, where: Settings) -> None:
    file = await filled(tmp_path)
    with sqlite3.connect(file) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    content = file.read_bytes()
    with pytest.raises(StoreError, match=r"later version of RallyChat.*update"):
        await opens(where)
    assert file.read_bytes() == content


@pytest.mark.sqlite
async def test_a_locked_database_is_said_to_be_locked(tmp_path: Path, where: Settings) -> None:
    file = await filled(tmp_path)
    other = sqlite3.connect(file, isolation_level=None)
    async with ConversationStore.open(where, busy_timeout=0.01) as store:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"Another program keeps .* locked"):
            await store.create()
        assert len(await store.list()) == 1  # reading goes on
        other.execute("ROLLBACK")
        await store.create()
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"Another program keeps .* locked"):
        await opens(where, busy_timeout=0.01)
    other.close()
    await opens(where)


@contextmanager
def not_root() -> Generator[None]:
    """Root may write everything, so a test of permissions steps down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def modes(*paths: Path, mode: int) -> None:
    for path in paths:
        path.chmod(mode)


@pytest.mark.sqlite
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize("folder_mode", [0o755, 0o777])
async def test_a_file_that_may_not_be_written_is_named(
    tmp_path: Path, where: Settings, folder_mode: int
) -> None:
    file = await filled(tmp_path)
    run = tmp_path / "run"
    ours = [folder for folder in tmp_path.parents if folder.name.startswith(("pytest-", "popen-"))]
    modes(*ours, mode=0o755)
    modes(tmp_path, mode=folder_mode)
    modes(file, mode=0o444)
    modes(run, mode=0o777)
    modes(run / "store.lock", mode=0o666)
    with not_root(), pytest.raises(StoreError, match=r"rallychat\.db cannot be written"):
        await opens(where)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
async def test_a_folder_that_may_not_be_made_is_named(tmp_path: Path) -> None:
    where = Settings(data_dir=tmp_path / "new")
    with not_root(), pytest.raises(StoreError, match=r"The folder .*run cannot be used: Permission denied"):
        await opens(where)


@pytest.mark.sqlite
async def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path, where: Settings) -> None:
    (tmp_path / "rallychat.db").mkdir()
    with pytest.raises(StoreError, match=r"rallychat\.db cannot be opened"):
        await opens(where)


async def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreError, match=r"The folder .*run cannot be used: (Not a directory|File exists)"):
        await opens(Settings(data_dir=tmp_path / "data"))


@pytest.mark.sqlite
async def test_a_folder_of_any_name_will_do_and_only_its_owner_may_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = Settings(data_dir=Path("what? #1 100% ü/data"))
    async with ConversationStore.open(where) as store:
        monkeypatch.chdir("/")
        await asyncio.gather(store.create(), store.list(), store.list(), store.list())
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / where.data_dir).iterdir()}
    assert modes == {
        "rallychat.db": 0o600,
        "rallychat.db-wal": 0o600,
        "rallychat.db-shm": 0o600,
        "run": 0o700,
    }


@pytest.mark.sqlite
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux shows its locks")
async def test_a_second_store_in_this_process_leaves_the_first_ones_locks(where: Settings) -> None:
    def locks() -> list[str]:
        inode = f":{where.database.stat().st_ino}"
        return [row.split()[1] for row in Path("/proc/locks").read_text().splitlines() if f"{inode} " in row]

    async with ConversationStore.open(where) as store:
        await store.create()
        before = locks()
        async with ConversationStore.open(where) as second:
            await second.list()
        assert before == locks() == ["POSIX"]


@pytest.mark.sqlite
async def test_a_persons_words_reach_the_disk_at_once_and_growing_answers_later(where: Settings) -> None:
    async def pragma(kind: Any, name: str) -> object:
        async with store._database.write(kind) as db:
            return (await db.exec_driver_sql(f"PRAGMA {name}")).scalar_one()

    async with ConversationStore.open(where) as store:
        levels = [await pragma(kind, "synchronous") for kind in ("durable", "growing", "durable", "growing")]
        assert levels == [2, 1, 2, 1]  # FULL, NORMAL
        assert await pragma("growing", "journal_mode") == "wal"
        assert await pragma("growing", "foreign_keys") == 1


@pytest.mark.sqlite
async def test_a_full_disk_is_one_sentence_and_what_was_stored_stays(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        [conversation] = await store.list()
        path = await store.path(conversation.id)
        async with store._database.read() as db:
            pages = (await db.exec_driver_sql("PRAGMA page_count")).scalar_one()
            await db.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        user = Message.of("user", "x" * 100_000)
        with pytest.raises(StoreError, match=r"no room left on the disk.*free some space"):
            await store.answers.begin(conversation.id, parent_id=None, user=user, model="m")
        assert await store.path(conversation.id) == path
        async with store._database.read() as db:
            await db.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1000}")
        asked, _ = await store.answers.begin(conversation.id, parent_id=None, user=user, model="m")
        assert asked is not None
        assert (await store.message(asked.id)).message == user


@pytest.mark.sqlite
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_never_gives_more_than_our_own_errors(
    tmp_path: Path, where: Settings, data: st.DataObject
) -> None:
    file = tmp_path / "rallychat.db"
    whole = tmp_path / "whole"
    if not whole.exists():
        asyncio.run(filled(tmp_path))
        whole.write_bytes(file.read_bytes())
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=300))
        content[at : at + len(junk)] = junk
    for leftover in ("-wal", "-shm"):
        Path(f"{file}{leftover}").unlink(missing_ok=True)
    file.write_bytes(content)
    with suppress(RallyChatError):
        asyncio.run(opens(where))
