"""`rallychat serve`: the address, start and end of a server, in a process of its own where it matters."""

from __future__ import annotations

import io
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from rallychat.bench.scripted import scripted
from rallychat.cli.serve import greet, listen, refuse_contradictions, refuse_strangers, url_of
from rallychat.errors import SettingsError
from rallychat.settings import Settings
from tests.cli_world import ROOT


@dataclass
class Server:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]

    def ends(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def server(folder: Path, *args: str) -> Iterator[Server]:
    """`rallychat serve` on a free port, until the block ends."""
    scripted(folder, "slow", "delay_ms = 5")
    command = [sys.executable, "-m", "rallychat", "serve", *args, "--no-browser", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder)], stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                yield Server(found[0].rstrip("/"), process)
                break
        else:
            raise AssertionError("the server did not start: " + "".join(said))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def environment() -> dict[str, str]:
    """This process's, without settings of the person who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RALLYCHAT_")}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


# --- the address --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.example.org", ""])
def test_strangers_are_refused_unless_asked_for(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match="nobody has an account") as refused:
        refuse_strangers(Settings(data_dir=tmp_path, host=host), known=False)
    for way in ("rallychat users add", "rallychat keys create", "--no-auth"):
        assert way in refused.value.hint
    refuse_strangers(Settings(data_dir=tmp_path, host=host, no_auth=True), known=False)
    refuse_strangers(Settings(data_dir=tmp_path, host=host), known=True)


@pytest.mark.parametrize("asked", [{"allowed_hosts": ("chat.example",)}, {"auth": "required"}])
def test_a_login_that_nobody_has_is_refused_on_this_machine_too(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="nobody has an account"):
        refuse_strangers(Settings(data_dir=tmp_path, **asked), known=False)
    refuse_strangers(Settings(data_dir=tmp_path, **asked), known=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_this_machine_needs_no_login(tmp_path: Path, host: str) -> None:
    refuse_strangers(Settings(data_dir=tmp_path, host=host), known=False)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7860/"),
        ("0.0.0.0", "http://127.0.0.1:7860/"),
        ("::1", "http://[::1]:7860/"),
        ("[::1]", "http://[::1]:7860/"),
        ("localhost", "http://localhost:7860/"),
    ],
)
def test_the_url_is_one_a_browser_opens(tmp_path: Path, host: str, url: str) -> None:
    assert url_of(Settings(data_dir=tmp_path, host=host)) == url


def test_the_url_is_told_whole_whatever_letters_an_address_has(tmp_path: Path) -> None:
    screen = io.StringIO()
    settings = Settings(data_dir=tmp_path, host="fd00::5", open_browser=False)
    greet(url_of(settings), settings, Console(file=screen, width=100))
    assert "http://[fd00::5]:7860/ " in screen.getvalue()


def test_a_port_taken_by_something_else_is_named_with_the_way_out(tmp_path: Path, taken: int) -> None:
    with pytest.raises(SettingsError, match=f"Port {taken}") as refused:
        listen(Settings(data_dir=tmp_path, port=taken), runs_here=lambda _: False)
    assert "--port 0" in refused.value.hint


def test_a_port_where_rallychat_runs_is_no_error(tmp_path: Path, taken: int) -> None:
    assert listen(Settings(data_dir=tmp_path, port=taken), runs_here=lambda _: True) is None


def test_an_address_of_another_machine_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1"):
        listen(Settings(data_dir=tmp_path, host="192.0.2.1", port=0), runs_here=lambda _: False)


def test_port_0_takes_a_free_one(tmp_path: Path) -> None:
    with listen(Settings(data_dir=tmp_path, port=0), runs_here=lambda _: False) or pytest.fail(
        "no socket"
    ) as found:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+/", url_of(Settings(data_dir=tmp_path), found))


# --- a whole server -----------------------------------------------------------------------------------------


def test_the_api_answers_with_the_model_of_the_command_line(tmp_path: Path) -> None:
    with server(tmp_path, "echo", "--api-only") as at:
        said = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx.post(f"{at.url}/v1/chat/completions", json=said, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "Hello"
        assert httpx.get(f"{at.url}/readyz", timeout=60).status_code == 200


def test_the_page_is_beside_the_api(tmp_path: Path) -> None:
    with server(tmp_path, "echo") as at:
        assert "text/html" in httpx.get(f"{at.url}/", timeout=60).headers["content-type"]
        assert httpx.get(f"{at.url}/healthz", timeout=60).json() == {"status": "ok"}


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 0), ("SIGTERM", 0), ("SIGHUP", 129)])
def test_a_signal_ends_the_server_in_order_while_an_answer_runs(tmp_path: Path, name: str, code: int) -> None:
    number = signal.Signals[name]
    if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started by nohup, and so would the server be")
    with server(tmp_path, "slow", "--api-only", "--shutdown-grace", "0") as at:
        said = {"model": "slow", "messages": [{"role": "user", "content": "!count 100000"}], "stream": True}
        with httpx.stream("POST", f"{at.url}/v1/chat/completions", json=said, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            assert at.ends(number) == code


def test_a_second_one_at_the_same_address_says_so_and_ends_well(tmp_path: Path) -> None:
    with server(tmp_path, "echo", "--api-only") as at:
        port = at.url.rpartition(":")[2]
        command = [sys.executable, "-m", "rallychat", "serve", "--no-browser", "--port", port]
        second = subprocess.run(
            [*command, "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=ROOT,
        )
        assert (second.returncode, second.stdout) == (0, "")
        assert f"already running at {at.url}/" in second.stderr


def test_a_model_that_cannot_be_had_is_said_and_the_server_stays(tmp_path: Path) -> None:
    with server(tmp_path, "smollm2-135m-instruct", "--api-only", "--offline") as at:
        assert httpx.get(f"{at.url}/healthz", timeout=60).status_code == 200
        assert httpx.get(f"{at.url}/readyz", timeout=60).status_code == 503
        said = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
        assert httpx.post(f"{at.url}/v1/chat/completions", json=said, timeout=60).status_code == 200


def test_gradio_is_imported_without_writing_stubs() -> None:
    code = (
        "from rallychat.cli.imports import write_no_stubs; write_no_stubs(); import gradio.component_meta as meta;"
        "print(meta.create_or_modify_pyi.__name__, meta.ComponentMeta.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["<lambda>", "ComponentMeta"]


# --- sharing ------------------------------------------------------------------------------------------------

FRPC = """#!/bin/sh
echo "login to server success"
echo "start proxy success: https://abc.example/$5"
exec sleep 600
"""


@pytest.fixture
def gradio_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the program that Gradio opens its tunnel with; it says which port it leads to."""
    system, machine = platform.system().lower(), {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    program = tmp_path / "hf" / "gradio" / "frpc" / f"frpc_{system}_{machine}_v0.3"
    program.parent.mkdir(parents=True)
    program.write_text(FRPC)
    program.chmod(0o755)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("GRADIO_SHARE_SERVER_ADDRESS", "127.0.0.1:9")
    return program


def test_sharing_wants_to_be_sure(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="public address") as refused:
        refuse_strangers(Settings(data_dir=tmp_path, share=True), known=False)
    assert "--no-auth" in refused.value.hint
    refuse_strangers(Settings(data_dir=tmp_path, share=True, no_auth=True), known=False)


def test_quantised_over_all_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--quantize int8 does not"):
        refuse_contradictions(Settings(data_dir=tmp_path, multi_gpu=True, quantize="int8"))


@pytest.mark.parametrize("asked", [{"share": True}, {"force_download_ckpt": True}])
def test_what_needs_the_network_is_refused_offline(tmp_path: Path, asked: dict[str, bool]) -> None:
    with pytest.raises(SettingsError, match="--offline forbids it"):
        refuse_contradictions(Settings(data_dir=tmp_path, offline=True, **asked))  # type: ignore[arg-type]


def test_a_shared_server_says_its_public_address_and_answers_to_it(
    tmp_path: Path, gradio_tunnel: Path
) -> None:
    with server(tmp_path, "echo", "--api-only", "--share", "--no-auth") as at:
        port = at.url.rpartition(":")[2]
        line = next(line for line in at.process.stderr or () if "internet" in line)
        assert f"https://abc.example/{port}" in line
        headers = {"host": "abc.example", "origin": "https://abc.example"}
        said = {"messages": [{"role": "user", "content": "Hello"}]}
        answer = httpx.post(f"{at.url}/v1/chat/completions", json=said, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert at.ends() == 0


def test_a_tunnel_that_fails_is_one_sentence_and_the_server_goes_on(
    tmp_path: Path, gradio_tunnel: Path
) -> None:
    gradio_tunnel.write_text("not a program")
    with server(tmp_path, "echo", "--api-only", "--share", "--no-auth") as at:
        line = next(line for line in at.process.stderr or () if "No public address" in line)
        assert line.count(". ") == 0
        assert httpx.get(f"{at.url}/healthz", timeout=60).status_code == 200
        assert at.ends() == 0
