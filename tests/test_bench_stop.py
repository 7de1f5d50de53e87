"""A measurement that is told to end closes what it opened and deletes what it made for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rallychat.signals import endings
from tests.cli_world import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; POSIX runs this")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_measurement_that_is_told_to_end_leaves_no_folder_behind(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started by nohup, and so would the measurement be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    places = {"TMPDIR": str(temporary), "RALLYCHAT_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rallychat", "bench", "neighbours", "echo", "--rounds", "1000"]
    with subprocess.Popen(command, env=os.environ | places, stderr=subprocess.PIPE) as process:
        while not [*temporary.glob("rallychat-bench-*")]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
                raise AssertionError("it ended too early")
        process.send_signal(number)
        said = process.communicate()[1].decode()
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert [*temporary.glob("rallychat-bench-*")] == []


PARENT = """
import asyncio, os, signal, sys
from rallychat.bench.server import dies_with_us

async def main():
    command = (sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(600)")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdout=pipe, preexec_fn=dies_with_us)
    await child.stdout.readline()
    os.kill(child.pid, signal.SIGSTOP)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_what_a_measurement_has_started_dies_with_it_even_frozen() -> None:
    command, places = [sys.executable, "-c", PARENT], {"PYTHONPATH": str(ROOT)}
    parent = subprocess.run(command, env=os.environ | places, stdout=subprocess.PIPE, text=True)
    assert parent.returncode == -signal.SIGKILL
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(parent.stdout))
        if child.status() != psutil.STATUS_ZOMBIE:
            child.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; POSIX runs this")
def test_who_was_started_by_nohup_is_not_ended_by_a_terminal_that_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert signal.SIGHUP in endings()
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert endings() == (signal.SIGTERM,)
