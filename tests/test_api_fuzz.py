"""schemathesis over the OpenAPI document: requests made from it, and against it, get what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.live_server import live

NOT_PROMISED = "positive_data_acceptance"
"""The document cannot say that a prompt must fit the window, nor that an assistant must not have the last word."""


@pytest.mark.timeout(600)
def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--no-color"]
    how = ["--mode=all", "--phases=coverage,fuzzing", "--max-examples=20", f"--exclude-checks={NOT_PROMISED}"]
    repeatable = ["--generation-deterministic", "--continue-on-failure"]
    patient = ["--request-timeout=120", "--suppress-health-check=too_slow"]  # a busy machine is no failure
    with live(tmp_path / "data") as server:
        where = [f"{server.url}/openapi.json"]
        done = subprocess.run(
            [*command, *how, *repeatable, *patient, *where],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=580,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "75 passed" in done.stdout, done.stdout
