"""`rallychat chat` in a real terminal: a process of its own behind a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from rallychat.bench.scripted import scripted
from rallychat.cli.commands import app
from tests.cli_world import ROOT

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals; POSIX runs this")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][AB0]|\x1b[=>]|\r")


class Screen:
    """What a program has written to its terminal, without colours and cursor movements."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, name: str) -> None:
        self.process = process
        self._master = master
        self._name = name
        self.text = ""
        self._seen = 0

    def types(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def waits_for(self, pattern: str) -> str:
        """Read until something new matches; the test run's own limit is the only clock."""
        while not (found := re.compile(pattern).search(self.text, self._seen)):
            self._read()
        self._seen = found.end()
        return found[0]

    def asks(self, pattern: str) -> None:
        """Wait for a question, and until it is waiting for the answer: a signal between the two is for the next key."""
        self.waits_for(pattern)
        self._is_read()

    def is_given(self, line: str) -> None:
        """Type a line, and wait until it has been read and the program waits for more."""
        self.types(f"{line}\n")
        self._is_read()

    def _is_read(self) -> None:
        terminal = os.open(self._name, os.O_RDONLY | os.O_NOCTTY)
        try:
            while _unread(terminal) or not self._sleeps():
                time.sleep(0.01)
        finally:
            os.close(terminal)

    def _sleeps(self) -> bool:
        assert self.process.poll() is None, "the program has ended"
        return psutil.Process(self.process.pid).status() == psutil.STATUS_SLEEPING

    def ends(self) -> int:
        """Read to the end; returns the exit code."""
        try:
            while True:
                self._read()
        except EOFError:
            return self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            data = b""
        if not data:
            raise EOFError(f"the program ended; it wrote: {self.text}")
        if b"\x1b[6n" in data:  # "where is the cursor?"
            self.types("\x1b[1;1R")
        self.text += ESCAPES.sub("", data.decode(errors="replace"))


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    scripted(tmp_path, "slow", "delay_ms = 2")
    with started("chat", "slow", "--data-dir", str(tmp_path)) as screen:
        yield screen


@contextmanager
def started(*words: str) -> Iterator[Screen]:
    """`rallychat WORDS…` in a terminal of its own, until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RALLYCHAT_")}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rallychat", *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        preexec_fn=lambda: _own_terminal(slave),
    )
    name = os.ttyname(slave)
    os.close(slave)
    try:
        yield Screen(process, master, name)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _unread(terminal: int) -> int:
    import fcntl
    import termios

    count = fcntl.ioctl(terminal, termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(count, sys.byteorder)


def _own_terminal(slave: int) -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests may have it ignored
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def test_a_person_says_hello_and_leaves(screen: Screen, tmp_path: Path) -> None:
    screen.waits_for("RallyChat with Slow")
    screen.types("!say Good *day*\r")
    screen.waits_for(r"Good day\s")
    screen.types("\x04")
    assert screen.ends() == 0
    assert "!say Good" in (tmp_path / "chat_history").read_text()


def test_whoever_acts_as_an_account_is_out_once_it_is_disabled(tmp_path: Path) -> None:
    def rallychat(*words: str, given: str = "") -> str:
        done = CliRunner().invoke(app, [*words, "--data-dir", str(tmp_path)], input=given)
        assert done.exit_code == 0, done.output
        return done.stdout

    scripted(tmp_path, "slow", "delay_ms = 2")
    rallychat("users", "add", "ben", given="a long password\n")
    with started("chat", "slow", "--user", "ben", "--data-dir", str(tmp_path)) as screen:
        screen.waits_for("RallyChat with Slow")
        screen.types("!say Good *day*\r")
        screen.waits_for(r"Good day\s")
        rallychat("users", "disable", "ben")
        screen.types("!say too late\r")
        screen.waits_for("disabled or deleted meanwhile")
        screen.types("\x04")
        assert screen.ends() == 0
    with started("chat", "slow", "--data-dir", str(tmp_path)) as screen:
        screen.waits_for("These are the conversations without login")
        screen.waits_for(r"Ctrl-D\s+leaves")
        screen.types("\x04")
        assert screen.ends() == 0
    said = rallychat("export", "--user", "ben")
    assert ("Good *day*" in said, "too late" in said) == (True, False)
    assert not (tmp_path / "chat_history").exists()


def test_what_is_typed_during_an_answer_is_the_next_message(screen: Screen) -> None:
    screen.waits_for(r"Ctrl-D\s+leaves")
    screen.types("!count 200\r")
    screen.waits_for("1 2 3 ")
    screen.types("!say first\r!say second\r")
    screen.waits_for(r"\nfirst\s")
    screen.waits_for(r"\nsecond\s")
    screen.types("/exit\r")
    assert screen.ends() == 0


def test_ctrl_c_in_the_terminal_stops_the_answer_only(screen: Screen) -> None:
    screen.waits_for(r"Ctrl-D\s+leaves")
    screen.types("!count 90000\r")
    screen.waits_for("1 2 3 ")
    screen.types("\x03")
    screen.waits_for("Stopped; /continue goes on")
    screen.types("!say still here\r")
    screen.waits_for(r"still here\s")
    screen.types("\x04")
    assert screen.ends() == 0


def test_a_terminal_that_is_closed_ends_the_program(screen: Screen) -> None:
    screen.waits_for(r"Ctrl-D\s+leaves")
    os.killpg(screen.process.pid, signal.SIGHUP)
    assert screen.process.wait() != 0


def test_ctrl_c_ends_a_question_for_a_password(tmp_path: Path) -> None:
    with started("users", "add", "ada", "--data-dir", str(tmp_path)) as screen:
        screen.asks("Password of ada: ")
        screen.types("\x03")
        assert screen.ends() != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_question_amid_the_event_loop(tmp_path: Path, number: signal.Signals) -> None:
    words = ["users", "add", "ada", "--data-dir", str(tmp_path)]
    assert CliRunner().invoke(app, words, input="a long password\n").exit_code == 0
    with started("users", "remove", "ada", "--data-dir", str(tmp_path)) as screen:
        screen.asks(r"for good\? \[y/N\]: ")
        screen.process.send_signal(number)
        assert screen.ends() != 0


def test_ctrl_c_ends_the_wait_for_a_conversation_on_standard_input(tmp_path: Path) -> None:
    with started("render", "default", "-", "--data-dir", str(tmp_path)) as screen:
        screen.is_given("{")
        screen.types("\x03")
        assert screen.ends() != 0
