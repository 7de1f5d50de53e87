"""What every worker does when it starts, fails and ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rallychat.engines.client import EngineClient
from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import CompletionRequest, EngineEvent, Tokens, WorkerSpec
from rallychat.engines.worker import LOST_PARENT
from rallychat.errors import EngineInterrupted, EngineUnavailable, RallyChatError, SettingsError
from tests.contract.rig import WINDOW, Rig, rig_of, scripted_spec
from tests.gguf_file import CHAT, gguf_bytes


async def failing(spec: WorkerSpec, *, load_timeout: float = 60) -> RallyChatError:
    """Why a worker does not start."""
    worker = WorkerProcess(spec, load_timeout=load_timeout, stall_timeout=10)
    with pytest.raises((EngineUnavailable, SettingsError)) as caught:
        await worker.start()
    assert not psutil.pid_exists(worker.pid)
    return caught.value


async def cut_off(rig: Rig, **request: Any) -> tuple[str, EngineInterrupted]:
    """The text that came before an answer was interrupted, and how it was."""
    asked = CompletionRequest(**({"prompt": await rig.chat("Go on and on."), "max_tokens": WINDOW} | request))
    texts: list[str] = []
    with pytest.raises(EngineInterrupted) as caught:
        await _collect(rig.client.generate(asked), texts)
    return "".join(texts), caught.value


async def _collect(stream: AsyncIterator[EngineEvent], texts: list[str]) -> None:
    async for event in stream:
        if isinstance(event, Tokens):
            texts.append(event.text)


async def test_a_killed_worker_interrupts_its_answers_and_its_end_is_told(doomed_rig: Rig) -> None:
    prompt = await doomed_rig.chat("Go on and on.")
    events = doomed_rig.client.generate(CompletionRequest(prompt=prompt, max_tokens=WINDOW, ignore_eos=True))
    async for event in events:
        if isinstance(event, Tokens):
            break
    os.kill(doomed_rig.worker.pid, signal.SIGKILL)
    with pytest.raises(EngineInterrupted, match="connection to the engine was lost"):
        await _collect(events, [])
    exited = asyncio.run_coroutine_threadsafe(doomed_rig.worker.exited(), doomed_rig.loop)
    assert await asyncio.wrap_future(exited) == -signal.SIGKILL


async def test_an_engine_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await EngineClient(socket=tmp_path / "gone.sock").info()


async def test_an_abort_interrupts_the_answer_and_keeps_its_beginning() -> None:
    with rig_of(scripted_spec(crash_after=5)) as rig:
        text, _ = await cut_off(rig)
        exited = asyncio.run_coroutine_threadsafe(rig.worker.exited(), rig.loop)
        assert await asyncio.wrap_future(exited) == -signal.SIGABRT
        assert "Go on and on.".startswith(text)
        assert text
        assert "crashing, as asked" in rig.worker.last_words


async def test_a_hung_engine_is_given_up_after_the_stall_timeout() -> None:
    with rig_of(scripted_spec(hang_after=5), stall_timeout=2) as rig:
        text, error = await cut_off(rig)
        assert "Go on and on.".startswith(text)
        assert text
        assert "silent for 2 seconds" in error.message


async def test_a_failure_within_an_answer_is_an_event_and_the_worker_lives_on() -> None:
    with rig_of(scripted_spec(fail_after=5)) as rig:
        for _ in range(6):  # more often than there are slots
            text, error = await cut_off(rig)
            assert "Go on and on.".startswith(text)
            assert text
            assert error.message == "The echo engine failed, as asked."


async def test_an_unknown_option_is_refused_by_name() -> None:
    assert "Option 'nonsense' of the echo engine" in (await failing(scripted_spec(nonsense=1))).message


async def test_a_refusal_that_is_longer_than_a_line_may_be_is_told_in_part() -> None:
    error = await failing(scripted_spec(**{"x" * 100_000: 1}))
    assert error.message.startswith("Option 'xxx")


async def test_a_path_that_no_message_can_carry_is_why_a_worker_does_not_start() -> None:
    error = await failing(WorkerSpec("echo", "echo", path="\udcff"))
    assert "The engine of 'echo' could not be started" in error.message


async def test_an_unknown_option_of_llama_cpp_is_refused_by_name(tmp_path: Path) -> None:
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(gguf_bytes())
    spec = WorkerSpec("llamacpp", "tiny", path=str(weights), options={"n_btach": 9})
    assert "Option 'n_btach' of the llama.cpp engine" in (await failing(spec)).message


async def test_a_failed_load_says_the_last_words() -> None:
    error = await failing(scripted_spec(load_error="ggml: out of luck, error 42"))
    assert (
        error.message == "The echo engine could not be loaded, as asked. It said: ggml: out of luck, error 42"
    )


async def test_a_load_that_takes_too_long_is_ended() -> None:
    error = await failing(scripted_spec(load_ms=60_000), load_timeout=1)
    assert error.message == "The engine of 'echo' was not ready after 1 seconds."


async def test_missing_weights_are_one_clear_sentence(tmp_path: Path) -> None:
    error = await failing(WorkerSpec("llamacpp", "lost", path=str(tmp_path / "lost.gguf")))
    assert (
        error.message
        == f"The weights file {tmp_path / 'lost.gguf'} cannot be read: no such file or directory."
    )


@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "bert"])
async def test_an_architecture_that_would_abort_is_refused_unread(tmp_path: Path, architecture: str) -> None:
    weights = tmp_path / "encoder.gguf"
    weights.write_bytes(gguf_bytes(CHAT | {"general.architecture": architecture}))
    error = await failing(WorkerSpec("llamacpp", "encoder", path=str(weights)))
    assert isinstance(error, EngineUnavailable)
    assert error.message == f"llama.cpp cannot chat with '{architecture}' models (encoder.gguf)."


async def test_weights_without_their_tensors_fail_with_llama_cpps_own_words(tmp_path: Path) -> None:
    weights = tmp_path / "hollow.gguf"
    weights.write_bytes(gguf_bytes())
    error = await failing(WorkerSpec("llamacpp", "hollow", path=str(weights)))
    assert isinstance(error, EngineUnavailable)
    assert "hollow.gguf" in error.message
    assert "It said:" in error.message


@pytest.mark.real
async def test_cut_weights_fail_with_llama_cpps_own_words(tmp_path: Path, smollm2_gguf: Path) -> None:
    weights = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as whole:
        weights.write_bytes(whole.read(20_000_000))
    error = await failing(WorkerSpec("llamacpp", "cut", path=str(weights)))
    assert isinstance(error, EngineUnavailable)
    assert "not within the file bounds" in error.message


def started(spec: WorkerSpec, folder: Path) -> subprocess.Popen[bytes]:
    """A worker whose standard input is ours to close."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rallychat.engines.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(start_of(spec, folder))
    process.stdin.flush()
    return process


def start_of(spec: WorkerSpec, folder: Path) -> bytes:
    """What a worker is told on its standard input."""
    facts = {name: getattr(spec, name) for name in WorkerSpec.__slots__}
    start = {"spec": facts, "folder": str(folder), "socket": str(folder / "s")}
    return json.dumps(start).encode() + b"\n"


def test_a_worker_ends_when_its_standard_input_does(tmp_path: Path) -> None:
    with started(scripted_spec(), tmp_path) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert json.loads(process.stdout.readline())["error"] is None
        process.stdin.close()
        assert process.wait(timeout=30) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when loading does")
def test_a_worker_ends_with_its_standard_input_even_while_it_loads(tmp_path: Path) -> None:
    with started(scripted_spec(load_ms=600_000), tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when loading does")
def test_a_worker_whose_server_is_gone_before_it_can_hear_of_that_ends(tmp_path: Path) -> None:
    """The thread that watches standard input may be too late: whoever loads may hold the interpreter lock by then."""
    without_thread = "from rallychat.engines import worker; worker._watch_stdin = lambda: None; worker.main()"
    ended, ours = os.pipe()
    os.write(ours, start_of(scripted_spec(load_ms=600_000), tmp_path))
    os.close(ours)
    with os.fdopen(ended, "rb") as stdin:
        done = subprocess.run([sys.executable, "-c", without_thread], stdin=stdin, timeout=60, check=False)
    assert done.returncode == LOST_PARENT


def test_a_worker_never_outlives_a_killed_server() -> None:
    server = (
        "import asyncio\n"
        "from rallychat.engines.process import WorkerProcess\n"
        "from rallychat.engines.protocol import WorkerSpec\n"
        "async def main():\n"
        "    worker = WorkerProcess(WorkerSpec('echo', 'echo'), load_timeout=60, stall_timeout=9)\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await worker.exited()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    _, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive


async def test_a_worker_listens_in_a_folder_that_only_its_user_can_enter(rig: Rig) -> None:
    worker = psutil.Process(rig.worker.pid)
    open_to = [connection for connection in worker.net_connections("all") if connection.laddr]
    assert {connection.family for connection in open_to} == {socket.AF_UNIX}
    folders = {
        Path(str(connection.laddr)).parent for connection in open_to if str(connection.laddr).startswith("/")
    }
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700]


async def test_a_stopped_worker_leaves_no_process_and_no_folder() -> None:
    worker = WorkerProcess(scripted_spec(), load_timeout=60, stall_timeout=10)
    await worker.start()
    sockets = [str(connection.laddr) for connection in psutil.Process(worker.pid).net_connections("unix")]
    (folder,) = {Path(path).parent for path in sockets if path.startswith("/")}
    await worker.stop()
    assert not psutil.pid_exists(worker.pid)
    assert not folder.exists()


async def test_what_a_killed_server_left_behind_is_removed_by_the_next_start() -> None:
    worker = WorkerProcess(scripted_spec(), load_timeout=60, stall_timeout=10)
    await worker.start()
    left, used = (Path(tempfile.mkdtemp(prefix="rallychat-")) for _ in range(2))
    for folder in (left, used):
        (folder / "llama.sock").touch()
    with socket.socket(socket.AF_UNIX) as forgotten, socket.socket(socket.AF_UNIX) as listening:
        forgotten.bind(str(left / "worker.sock"))
        listening.bind(str(used / "worker.sock"))
        listening.listen()
        other = WorkerProcess(scripted_spec(), load_timeout=60, stall_timeout=10)
        await other.start()
        assert (left.exists(), used.exists()) == (False, True)
    shutil.rmtree(used)
    assert (await worker.client.health())["status"] == "ok"
    await asyncio.gather(worker.stop(), other.stop())


async def test_a_worker_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    worker = WorkerProcess(scripted_spec(), load_timeout=60, stall_timeout=10)
    await worker.start()
    await worker.stop()


def test_a_worker_loads_nothing_of_the_server() -> None:
    code = "import sys, rallychat.engines.worker, rallychat.engines.echo; print('\\n'.join(sys.modules))"
    modules = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not modules & {
        "gradio",
        "sqlalchemy",
        "fastapi",
        "huggingface_hub",
        "httpx",
        "xllamacpp",
        "jinja2",
    }
