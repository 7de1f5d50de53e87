"""A measurement that is told to end closes what it opened and deletes what it made for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli_world import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; POSIX runs this")
def test_a_measurement_that_is_told_to_end_leaves_no_folder_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    places = {"TMPDIR": str(temporary), "RALLYCHAT_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rallychat", "bench", "neighbours", "echo", "--rounds", "1000"]
    with subprocess.Popen(command, env=os.environ | places, stderr=subprocess.PIPE) as process:
        while not [*temporary.glob("rallychat-bench-*")]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
                raise AssertionError("it ended too early")
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1].decode()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert [*temporary.glob("rallychat-bench-*")] == []
