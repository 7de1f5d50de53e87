"""Weights from a Hugging Face hub: tokens, gates, what is missing, and connections that break."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rallychat.catalog import Model
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
from rallychat.sources import Progress, fetch, hub, is_here, remove, weights_path
from tests.hub_server import CONTENT, TOKEN, HubServer, Repository, hub_in_place


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_in_place(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def with_token(settings: Settings) -> Settings:
    return Settings(data_dir=settings.data_dir, hub_token=TOKEN)


def get(model: Model, settings: Settings) -> Path:
    return fetch(model, settings, on_progress=lambda _: None)


def leftovers(settings: Settings) -> list[str]:
    """Every file below the models folder, locks aside."""
    found = (path for path in settings.models_dir.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.parent.name != ".locks")


def test_the_file_arrives_whole_and_alone(server: HubServer, settings: Settings) -> None:
    seen: list[Progress] = []
    path = fetch(server.model(), settings, on_progress=seen.append)
    assert path == settings.models_dir / "hub" / "owner" / "model" / "tiny.gguf"
    assert path == weights_path(server.model(), settings)
    assert path.read_bytes() == CONTENT
    assert leftovers(settings) == ["tiny.gguf"]
    assert seen[-1] == Progress(len(CONTENT), len(CONTENT), "download")
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)


def test_what_is_here_is_not_asked_for_again(server: HubServer, settings: Settings) -> None:
    get(server.model(), settings)
    server.requests.clear()
    get(server.model(), settings)
    assert server.requests == []


def test_offline_says_so_and_asks_nobody(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(NoNetwork, match="offline"):
        get(server.model(), Settings(data_dir=tmp_path, offline=True))
    assert server.requests == []


def test_the_hubs_own_offline_switch_is_understood(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NoNetwork, match="HF_HUB_OFFLINE"):
        get(server.model(), settings)


def test_a_file_in_a_folder_at_a_revision(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/model"] = Repository({"q4/tiny.gguf": CONTENT}, ("main", "v2"))
    model = server.model(file="q4/tiny.gguf", revision="v2")
    path = get(model, settings)
    assert path == settings.models_dir / "hub" / "owner" / "model" / "@v2" / "q4" / "tiny.gguf"
    assert path.read_bytes() == CONTENT


def test_the_token_of_the_settings_opens_a_gated_repository(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/model"].access = "gated"
    with pytest.raises(Gated, match="owner/model is gated") as caught:
        get(server.model(), settings)
    assert "RALLYCHAT_HUB_TOKEN" in caught.value.hint
    assert get(server.model(), with_token(settings)).read_bytes() == CONTENT


def test_the_hubs_own_token_is_used_where_none_is_set(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["owner/model"].access = "private"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert get(server.model(), settings).read_bytes() == CONTENT


def test_a_token_that_may_not_read_is_refused(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/model"].access = "gated"
    with pytest.raises(Gated):
        get(server.model(), Settings(data_dir=settings.data_dir, hub_token="hf_other"))


def test_no_sentence_shows_the_token(server: HubServer, settings: Settings) -> None:
    with pytest.raises(SourceMissing) as caught:
        get(server.model("owner/none"), with_token(settings))
    assert TOKEN not in str(caught.value) + repr(with_token(settings))


@pytest.mark.parametrize(
    ("repo", "file", "revision", "token", "error", "words"),
    [
        ("owner/none", "x.gguf", "main", True, SourceMissing, "no repository 'owner/none'"),
        ("owner/none", "x.gguf", "main", False, Gated, "does not exist, or wants a token"),
        ("owner/model", "none.gguf", "main", False, SourceMissing, "no file 'none.gguf'"),
        ("owner/model", "tiny.gguf", "v9", False, SourceMissing, "no revision 'v9'"),
    ],
)
def test_what_is_missing_is_named(
    server: HubServer,
    settings: Settings,
    repo: str,
    file: str,
    revision: str,
    token: bool,
    error: type[SourceError],
    words: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        get(server.model(repo, file, revision=revision), with_token(settings) if token else settings)
    assert "\n" not in str(caught.value)
    assert leftovers(settings) == []


def test_a_cut_connection_goes_on_where_it_broke(server: HubServer, settings: Settings) -> None:
    server.cuts = [2_000_000]
    assert get(server.model(), settings).read_bytes() == CONTENT
    first, second = server.ranges_asked
    assert first is None
    assert second is not None
    assert second.startswith("bytes=")
    assert int(second.removeprefix("bytes=").rstrip("-")) >= 1_000_000


def test_a_hub_that_sends_everything_again_is_understood(server: HubServer, settings: Settings) -> None:
    server.cuts = [2_000_000]
    server.ranges = False
    assert get(server.model(), settings).read_bytes() == CONTENT


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, len(CONTENT)), max_size=4))
def test_wherever_it_is_cut_the_file_is_whole(server: HubServer, settings: Settings, cuts: list[int]) -> None:
    server.cuts = list(cuts)
    assert get(server.model(), settings).read_bytes() == CONTENT
    server.cuts = []
    remove(server.model(), settings)


def test_a_stumbling_hub_is_asked_again(server: HubServer, settings: Settings) -> None:
    server.errors = [503, 429]
    assert get(server.model(), settings).read_bytes() == CONTENT


def test_a_connection_broken_for_good_keeps_what_arrived_for_the_next_try(
    server: HubServer, settings: Settings
) -> None:
    server.cuts = [2_000_000, 0, 0]
    with pytest.raises(NoNetwork, match="connection to the hub failed"):
        get(server.model(), settings)
    assert not is_here(server.model(), settings)

    server.requests.clear()
    assert get(server.model(), settings).read_bytes() == CONTENT
    (asked,) = server.ranges_asked
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 1_000_000
    assert leftovers(settings) == ["tiny.gguf"]


def test_a_part_of_an_older_version_is_not_mixed_in(server: HubServer, settings: Settings) -> None:
    server.cuts = [2_000_000, 0, 0]
    with pytest.raises(NoNetwork):
        get(server.model(), settings)
    newer = b"GGUF" + CONTENT[:0:-1]
    server.repositories["owner/model"].files["tiny.gguf"] = newer
    assert get(server.model(), settings).read_bytes() == newer


@pytest.mark.parametrize("promised_by", ["hub", "catalog"])
def test_a_wrong_checksum_is_thrown_away(server: HubServer, settings: Settings, promised_by: str) -> None:
    wrong = "0" * 64
    server.promised_sha256 = wrong if promised_by == "hub" else None
    model = server.model(sha256=wrong if promised_by == "catalog" else None)
    with pytest.raises(ChecksumMismatch, match="damaged"):
        get(model, settings)
    assert leftovers(settings) == []

    server.promised_sha256 = None
    assert get(server.model(), settings).read_bytes() == CONTENT


def test_a_file_that_is_no_gguf_is_thrown_away(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/model"].files["tiny.gguf"] = b"<html>please log in</html>"
    with pytest.raises(SourceError, match="not a GGUF file"):
        get(server.model(), settings)
    assert leftovers(settings) == []


def test_no_network_is_one_sentence(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NoNetwork, match="connection to the hub failed") as caught:
        get(server.model(), settings)
    assert "\n" not in str(caught.value)
    assert leftovers(settings) == []


def test_too_little_room_is_said_before_the_download(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(DiskFull, match=r"Tiny needs 5\.1 MB .* 1\.0 MB are free"):
        get(server.model(), settings)
    assert server.ranges_asked == []


def test_a_disk_that_becomes_full_leaves_nothing_broken(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(hub, "settle", full)
        with pytest.raises(DiskFull, match="became full"):
            get(server.model(), settings)
    assert leftovers(settings) == []
    assert get(server.model(), settings).read_bytes() == CONTENT


def test_calling_off_keeps_the_part_and_removing_frees_it(server: HubServer, settings: Settings) -> None:
    server.held = True
    with pytest.raises(SourceCancelled):
        fetch(server.model(), settings, on_progress=lambda _: None, cancelled=server.half_sent.is_set)
    assert not is_here(server.model(), settings)
    part = sum(path.stat().st_size for path in settings.models_dir.rglob("*.part"))
    assert remove(server.model(), settings) == part > 0
    assert leftovers(settings) == []


FETCH = """
import sys
from rallychat.catalog import Model
from rallychat.settings import Settings
from rallychat.sources import fetch
model = Model.model_validate_json(sys.argv[1])
fetch(model, Settings(data_dir=sys.argv[2]), on_progress=lambda _: None)
"""


def test_a_fetch_killed_half_way_goes_on_where_it_was(server: HubServer, settings: Settings) -> None:
    server.held = True
    child = subprocess.Popen(
        [sys.executable, "-c", FETCH, server.model().model_dump_json(), str(settings.data_dir)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert server.half_sent.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not is_here(server.model(), settings)

    server.release()
    assert get(server.model(), settings).read_bytes() == CONTENT
    assert leftovers(settings) == ["tiny.gguf"]
