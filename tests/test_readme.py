"""The README's examples run as they are printed, but for the address and the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live_server import live

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def said(code: str, **environment: str) -> str:
    """What an example prints, in a process of its own where every warning is an error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RALLYCHAT_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(word: str) -> str:
    found: list[str] = [code for code in EXAMPLES if word in code]
    assert len(found) == 1
    return found[0]


def test_the_openai_example(tmp_path: Path) -> None:
    with live(tmp_path) as server:
        code = example("OpenAI").replace("http://127.0.0.1:7860", server.url)
        assert said(code.replace("smollm2-135m-instruct", "echo")) == "Hello!\n"


def test_the_python_example_without_a_server(tmp_path: Path) -> None:
    code = example("rallychat.open")
    out = said(code, RALLYCHAT_MODEL="echo", RALLYCHAT_DATA_DIR=str(tmp_path))
    assert out == "Give me three tips for better sleep.\n"


@pytest.mark.real
def test_the_python_example_with_the_real_model(tmp_path: Path, smollm2_gguf: Path) -> None:
    model = {"RALLYCHAT_MODEL": str(smollm2_gguf), "RALLYCHAT_THREADS": "1"}
    out = said(example("rallychat.open"), RALLYCHAT_DATA_DIR=str(tmp_path), **model)
    assert len(out.split()) > 1
