"""The strategy of docs/context.md runs as it is printed, in Python and on the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
(EXAMPLE,) = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "context.md").read_text("utf-8"), re.M | re.S
)


def said(code: str, *arguments: str, folder: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RALLYCHAT_")}
    own = {"PYTHONPATH": str(ROOT), "RALLYCHAT_MODEL": "echo", "RALLYCHAT_DATA_DIR": str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=clean | own, capture_output=True, text=True, input="hello", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_strategy_of_ones_own(tmp_path: Path) -> None:
    out = said(EXAMPLE, folder=tmp_path)
    assert out == "last_two 3 kept, 2 dropped: the last exchange is kept\n"


def test_a_strategy_of_ones_own_on_the_command_line(tmp_path: Path) -> None:
    command = EXAMPLE.replace("asyncio.run(main())", "import rallychat.cli\nrallychat.cli.main()")
    assert command != EXAMPLE
    out = said(command, "chat", folder=tmp_path)
    assert out == "hello\n"
