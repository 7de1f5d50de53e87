"""The notebook: it is valid, holds no outputs, and runs from top to bottom against this checkout."""

from __future__ import annotations

import ast
import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "rallychat_in_colab.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_the_notebook_is_valid_and_holds_no_outputs() -> None:
    nbformat: Any = import_module("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))


def said(cell: Any) -> str:
    """What an executed cell printed."""
    return "".join(output.get("text", "") for output in cell["outputs"])


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given during the test; where it is bound but not listened on, a server still may."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.1", 0))
        found: int = ours.getsockname()[1]
        if sys.platform != "linux":  # elsewhere a bound port is taken
            ours.close()
        yield found


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_installs_starts_opens_the_page_and_asks(
    tmp_path: Path, smollm2_gguf: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("RALLYCHAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RALLYCHAT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RALLYCHAT_MODEL", str(smollm2_gguf.resolve()))
    monkeypatch.setenv("RALLYCHAT_PORT", str(port))
    monkeypatch.setenv("RALLYCHAT_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", str(tmp_path))  # as on a machine without a GPU
    nbformat: Any = import_module("nbformat")
    nbclient: Any = import_module("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    done = {cell["id"]: said(cell) for cell in notebook.cells if cell["cell_type"] == "code"}
    assert "RallyChat is installed" in done["install"]
    assert "Ready after" in done["start"]
    assert f"The page is at http://127.0.0.1:{port}/" in done["open"]
    assert len(done["ask"].split()) > 3
    assert done["stop"] == "It ended with 0\n"
