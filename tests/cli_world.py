"""A person's machine for tests of the command line: folders of its own, and `rallychat` run in this process."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rallychat.cli import main

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a command ended with and printed."""

    code: int
    out: str
    err: str


class Person:
    """Types commands. Nothing of the real machine's settings or data is seen."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.home = home
        self.data = home / "data"
        self.monkeypatch = monkeypatch
        self._capsys = capsys
        for name in [name for name in os.environ if name.startswith(("RALLYCHAT_", "HF_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        monkeypatch.setenv("RALLYCHAT_DATA_DIR", str(self.data))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for workers, should RallyChat not be installed
        monkeypatch.chdir(home)

    def types(self, *args: str, stdin: str = "") -> Outcome:
        """Run `rallychat ARGS` to its end."""
        self.monkeypatch.setattr(sys, "argv", ["rallychat", *args])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        self._capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        printed = self._capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    def adds_model(self, name: str, text: str) -> None:
        """A model file in the user's own catalog."""
        folder = self.data / "catalog" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(text)
