"""docs/api.md: its routes are the app's, its codes exist, its fields are the schema's, its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from rallychat.api.responses.requests import ResponseRequest
from rallychat.api.schemas import ChatCompletionRequest, CompletionRequest
from rallychat.cards import ModelState
from rallychat.settings import Settings
from tests.api_world import client, scripted
from tests.live_server import Live, live

DOC = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(sh|python)\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)


async def test_the_routes_of_the_docs_are_the_routes_of_the_app(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    offered = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    told = set(re.findall(r"^\| `(GET|POST|DELETE|PUT|PATCH) (/\S+)` \|", DOC, re.MULTILINE))
    assert told == offered | {("GET", "/openapi.json")}


def test_every_field_is_in_the_docs() -> None:
    fields = (
        ChatCompletionRequest.model_fields | CompletionRequest.model_fields | ResponseRequest.model_fields
    )
    missing = [name for name in fields if f"`{name}`" not in DOC]
    assert missing == []
    assert [state for state in get_args(ModelState) if f"`{state}`" not in DOC] == []


def test_settings_named_in_the_docs_exist() -> None:
    named = re.findall(r"`(max_\w+_bytes|max_queue)`", DOC)
    named += [
        line.partition(" = ")[0]
        for toml in re.findall(r"^```toml\n(.*?)```", DOC, re.MULTILINE | re.DOTALL)
        for line in toml.splitlines()
    ]
    assert set(named) == {
        "max_body_bytes",
        "max_file_bytes",
        "max_import_bytes",
        "max_queue",
        "allowed_hosts",
    }
    assert set(named) <= Settings.model_fields.keys()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch, live(tmp_path_factory.mktemp("docs")) as running:
        # else the example's batch leaves the slots of the conversations before it alone for a minute
        patch.setattr("rallychat.pool.affinity.UNUSED", 0.0)
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
@pytest.mark.parametrize(("language", "example"), EXAMPLES)
def test_an_example_runs(server: Live, language: str, example: str) -> None:
    example = example.replace("http://127.0.0.1:7860", server.url).replace("smollm2-135m-instruct", "echo")
    command = [sys.executable, "-c", example] if language == "python" else ["bash", "-ec", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not re.search(r'"error": ?\{', done.stdout) or '"n": 2' in example
