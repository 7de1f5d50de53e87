"""Checkpoints and adapters from a hub: what is refused before it costs anything, and folders that appear whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rallychat.catalog import Adapter, Checkpoint, Model
from rallychat.catalog.places import folder
from rallychat.catalog.repository import MANIFEST
from rallychat.errors import (
    ChecksumMismatch,
    DiskFull,
    Gated,
    NoNetwork,
    SourceCancelled,
    SourceError,
    SourceMissing,
    Unsupported,
)
from rallychat.settings import Settings
from rallychat.sources import Progress, fetch, is_here, remove, weights_path
from rallychat.sources.fetching import adapter_paths
from tests.checkpoint_files import adapter_files, checkpoint_files
from tests.hub_server import TOKEN, HubServer, Repository, hub_in_place
from tests.test_sources_hub import leftovers
from tests.test_sources_pickled import read, saved, tensor

LORA = Adapter(name="lora", repo="someone/lora")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_in_place(monkeypatch, tmp_path) as running:
        running.repositories = {
            "owner/base": Repository(checkpoint_files(shards=3)),
            "someone/lora": Repository(adapter_files()),
        }
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def model(*adapters: Adapter, **given: Any) -> Model:
    checkpoint = Checkpoint(**{"repo": "owner/base", "adapters": adapters} | given)
    return Model(id="tiny", name="Tiny", family="chatml", checkpoint=checkpoint)


def get(wanted: Model, settings: Settings, **given: Any) -> Path:
    return fetch(wanted, settings, on_progress=lambda _: None, **given)


def test_only_what_transformers_reads_is_fetched_and_lies_in_one_folder(
    server: HubServer, settings: Settings
) -> None:
    server.repositories["owner/base"].files |= {
        "pytorch_model.bin": b"pickle",
        "model.onnx": b"other",
        "consolidated.safetensors": b"the same again",
        "original/model.safetensors": b"the same again",
        "modeling.py": b"import os",
    }
    path = get(model(), settings)
    assert path == weights_path(model(), settings) == settings.models_dir / "checkpoints" / "owner" / "base"
    files = server.repositories["owner/base"].files
    fetched = {each.name: each.read_bytes() for each in path.iterdir() if each.name != "rallychat.json"}
    assert fetched == {
        name: files[name]
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        )
    }
    assert is_here(model(), settings)
    assert sorted(leftovers(settings)) == sorted([*fetched, "rallychat.json"])


def test_what_is_here_is_not_asked_for_again_unless_it_is_forced(
    server: HubServer, settings: Settings
) -> None:
    get(model(LORA), settings)
    server.requests.clear()
    get(model(LORA), settings)
    assert server.requests == []
    server.repositories["owner/base"].files["generation_config.json"] = b'{"eos_token_id": 3}'
    path = get(model(LORA), settings, force=True)
    assert (path / "generation_config.json").read_bytes() == b'{"eos_token_id": 3}'
    assert not any("fetching" in str(each) for each in settings.models_dir.rglob("*"))


def test_progress_is_of_every_file_and_of_all_together(server: HubServer, settings: Settings) -> None:
    seen: list[Progress] = []
    fetch(model(LORA), settings, on_progress=seen.append)
    last = seen[-1]
    assert last.done == last.total == sum(each.total or 0 for each in last.files)
    assert all(each.done == each.total for each in last.files)
    assert {"lora/adapter_model.safetensors", "config.json"} <= {each.name for each in last.files}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert {each.total for each in seen} == {last.total}


def test_an_adapter_shares_its_base_with_others(server: HubServer, settings: Settings) -> None:
    server.repositories["other/lora"] = Repository(adapter_files())
    other = model(Adapter(name="other", repo="other/lora"))
    get(model(LORA), settings)
    server.requests.clear()
    get(other, settings)
    assert {request.path.split("/resolve")[0] for request in server.requests} == {
        "/api/models/other/lora/revision/main",
        "/other/lora",
        "/cdn/other/lora",
    }
    assert adapter_paths(other, settings) == {"other": settings.models_dir / "checkpoints" / "other" / "lora"}

    assert remove(model(LORA), settings) > 0
    assert is_here(other, settings)
    assert not is_here(model(LORA), settings)
    remove(other, settings)
    assert leftovers(settings) == []


def test_a_revision_is_kept_apart(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/base"].revisions = ("main", "refs/pr/1")
    path = get(model(revision="refs/pr/1"), settings)
    assert path.name == "base@refs%2Fpr%2F1"
    assert not is_here(model(), settings)
    with pytest.raises(SourceMissing, match="no revision 'v9'"):
        get(model(revision="v9"), settings)


PICKLED = {name: data for name, data in checkpoint_files().items() if "safetensors" not in name} | {
    "pytorch_model-00001-of-00002.bin": b"\x80",
    "pytorch_model-00002-of-00002.bin": b"\x80",
}
FALCON = checkpoint_files(
    "RWForCausalLM", "RefinedWebModel", auto_map={"AutoModelForCausalLM": "modeling.Own"}
)


@pytest.mark.parametrize(
    ("files", "words", "hint"),
    [
        ({"config.json": b"{}", "model.pt": b""}, r"pickles only \(model\.pt\)", "--base-url"),
        (
            checkpoint_files("WhisperForAudio", "whisper"),
            "architecture WhisperForAudio",
            "nothing was downloaded",
        ),
        (checkpoint_files("LlamaForSequenceClassification"), "architecture LlamaForSequence", ""),
        (FALCON, r"\(RWForCausalLM\) runs only with Python code of its own", "--remote-code owner/base"),
        (adapter_files(), "holds no checkpoint", ""),
        ({"config.json": b"{}", "model.safetensors": b""}, "does not say its architecture", ""),
        ({"config.json": b"[", "model.safetensors": b""}, "does not say its architecture", ""),
    ],
    ids=["pickles", "speech", "classifier", "code", "adapter", "empty", "broken"],
)
def test_what_could_not_run_is_refused_before_anything_is_downloaded(
    server: HubServer, settings: Settings, files: dict[str, bytes], words: str, hint: str
) -> None:
    server.repositories["owner/base"].files = dict(files)
    with pytest.raises(Unsupported, match=words) as caught:
        get(model(), settings)
    assert hint in caught.value.hint
    assert [path for path in server.fetched if not path.endswith("config.json")] == []
    assert leftovers(settings) == []


@pytest.mark.parametrize("why", ["gone", "pickled"])
def test_a_base_that_has_left_the_hub_or_is_pickled_comes_from_its_living_copy(
    server: HubServer, settings: Settings, why: str
) -> None:
    server.repositories["alive/base"] = server.repositories.pop("owner/base")
    if why == "pickled":
        server.repositories["owner/base"] = Repository(PICKLED)
    path = get(model(LORA, living_copy="alive/base"), settings)
    assert path == settings.models_dir / "checkpoints" / "owner" / "base"
    assert json.loads((path / "rallychat.json").read_text())["repo"] == "alive/base"


def test_a_checkpoints_own_code_comes_with_it_once_its_name_is_allowed(
    server: HubServer, settings: Settings
) -> None:
    server.repositories["owner/base"].files = FALCON | {"modeling.py": b"class Own: ..."}
    allowed = Settings(data_dir=settings.data_dir, remote_code=("Owner/Base",))
    assert (get(model(), allowed) / "modeling.py").is_file()


def test_the_first_llamas_are_known_by_their_old_name(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/base"].files = checkpoint_files("LLaMAForCausalLM")
    assert get(model(), settings).is_dir()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (adapter_files(width=96), "does not fit owner/base: .* 96 wide, not 64"),
        (adapter_files(peft_type="PREFIX_TUNING"), "PREFIX_TUNING; only LoRA"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"rm"}, "is a pickle that was not converted"),
        (checkpoint_files(), "holds no adapter"),
    ],
    ids=["width", "kind", "pickle", "checkpoint"],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_base_is_downloaded(
    server: HubServer, settings: Settings, files: dict[str, bytes], words: str
) -> None:
    server.repositories["someone/lora"].files = dict(files)
    with pytest.raises(Unsupported, match=words):
        get(model(LORA), settings)
    assert not folder(Checkpoint(repo="owner/base"), settings.models_dir).exists()
    assert [path for path in server.fetched if "/owner/base/" in path and "config.json" not in path] == []


def test_a_pickled_adapter_arrives_as_safetensors(
    server: HubServer, settings: Settings, tmp_path: Path
) -> None:
    files = adapter_files()
    (tmp_path / "as.safetensors").write_bytes(files.pop("adapter_model.safetensors"))
    tensors = read(tmp_path / "as.safetensors")
    assert {kind for kind, _, _ in tensors.values()} == {"F16"}
    table = {name: tensor("HalfStorage", name, tuple(shape)) for name, (_, shape, _) in tensors.items()}
    numbers = {name: data for name, (_, _, data) in tensors.items()}
    files["adapter_model.bin"] = saved(tmp_path / "a.bin", table, **numbers).read_bytes()
    server.repositories["someone/lora"].files = files
    get(model(LORA), settings)
    here = folder(LORA, settings.models_dir)
    assert {path.name for path in here.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        MANIFEST,
    }
    assert read(here / "adapter_model.safetensors") == tensors


def test_a_checkpoint_in_pickled_parts_arrives_as_safetensors_with_an_index(
    server: HubServer, settings: Settings, tmp_path: Path
) -> None:
    files = {name: data for name, data in checkpoint_files().items() if "safetensors" not in name}
    for at, name in enumerate(("a", "b"), start=1):
        table = {name: tensor("FloatStorage", "0", (2, 3))}
        part = saved(tmp_path / f"{name}.bin", table, _0=bytes([at]) * 24)
        files[f"pytorch_model-0000{at}-of-00002.bin"] = part.read_bytes()
    server.repositories["owner/base"].files = files
    here = get(model(), settings)
    assert [path.name for path in sorted(here.glob("*model*"))] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert read(here / "model-00002-of-00002.safetensors") == {"b": ("F32", [2, 3], bytes([2]) * 24)}
    assert json.loads((here / "model.safetensors.index.json").read_text())["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }


def test_a_gated_checkpoint_wants_a_token(server: HubServer, settings: Settings) -> None:
    server.repositories["owner/base"].access = "gated"
    with pytest.raises(Gated, match="owner/base is gated"):
        get(model(), settings)
    assert get(model(), Settings(data_dir=settings.data_dir, hub_token=TOKEN)).is_dir()


def test_a_repository_that_has_left_the_hub_is_named(server: HubServer, settings: Settings) -> None:
    with pytest.raises(SourceMissing, match="no repository 'gone/base'"):
        get(model(repo="gone/base"), Settings(data_dir=settings.data_dir, hub_token=TOKEN))


def test_offline_says_so_and_asks_nobody(server: HubServer, settings: Settings) -> None:
    offline = Settings(data_dir=settings.data_dir, offline=True)
    with pytest.raises(NoNetwork, match="stay offline"):
        get(model(), offline)
    assert server.requests == []
    get(model(), settings)
    assert get(model(), offline).is_dir()


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NoNetwork, match="connection to the hub failed"):
        get(model(), settings)


def test_a_cut_connection_goes_on_where_it_broke(server: HubServer, settings: Settings) -> None:
    large = checkpoint_files(width=8192)["model.safetensors"]
    server.repositories["owner/base"].files = checkpoint_files() | {"model.safetensors": large}
    server.cuts = [10**9] * 5 + [100_000]
    assert (get(model(), settings) / "model.safetensors").read_bytes() == large
    assert server.ranges_asked[-1] is not None


@pytest.mark.parametrize("damaged", ["generation_config.json", "model-00002-of-00003.safetensors"])
def test_a_damaged_file_is_thrown_away_and_the_rest_is_kept(
    server: HubServer, settings: Settings, damaged: str
) -> None:
    files = server.repositories["owner/base"].files
    right = files[damaged]
    server.damaged = {damaged: right[:-1] + b"\x07"}
    with pytest.raises(ChecksumMismatch, match="damaged"):
        get(model(), settings)
    assert not is_here(model(), settings)
    server.damaged = {}
    server.requests.clear()
    assert (get(model(), settings) / damaged).read_bytes() == right
    again = [path.rsplit("/", 1)[1] for path in server.fetched]
    assert damaged in again
    assert (damaged == "generation_config.json") == ("tokenizer.json" in again)


def test_too_little_room_is_said_before_the_download(
    server: HubServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DiskFull, match="Tiny needs"):
        get(model(LORA), settings)
    assert [path for path in server.fetched if not path.endswith("config.json")] == []


def test_calling_off_keeps_what_is_whole_and_removing_frees_it(server: HubServer, settings: Settings) -> None:
    def at_the_second_shard() -> bool:
        return any("00002-of" in path for path in server.fetched)

    with pytest.raises(SourceCancelled):
        fetch(model(), settings, on_progress=lambda _: None, cancelled=at_the_second_shard)
    assert not is_here(model(), settings)
    assert "model-00001-of-00003.safetensors" in leftovers(settings)
    assert remove(model(), settings) > 0
    assert leftovers(settings) == []


FETCH = """
import sys
from rallychat.catalog import Model
from rallychat.settings import Settings
from rallychat.sources import fetch
model = Model.model_validate_json(sys.argv[1])
fetch(model, Settings(data_dir=sys.argv[2]), on_progress=lambda _: None)
"""


def start(wanted: Model, settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, wanted.model_dump_json(), str(settings.data_dir)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


def test_a_fetch_killed_half_way_goes_on_with_the_files_that_are_whole(
    server: HubServer, settings: Settings
) -> None:
    server.held_file = "model-00002-of-00003.safetensors"
    child = start(model(), settings)
    assert server.half_sent_of(server.held_file, 60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not is_here(model(), settings)
    server.release()
    server.requests.clear()
    path = get(model(), settings)
    assert not any("00001-of" in each for each in server.fetched)
    assert (path / "model-00002-of-00003.safetensors").is_file()


def test_two_processes_that_want_it_fetch_it_once(server: HubServer, settings: Settings) -> None:
    server.held_file = "model-00002-of-00003.safetensors"
    child = start(model(), settings)
    assert server.half_sent_of(server.held_file, 60)
    seen: list[Progress] = []

    def release(progress: Progress) -> None:
        seen.append(progress)
        server.release()

    path = fetch(model(), settings, on_progress=release)
    assert child.wait() == 0
    assert path.is_dir()
    assert seen
    shards = [each for each in server.fetched if each.endswith(".safetensors")]
    assert len(shards) == 3


def test_a_file_that_is_no_safetensors_is_said(server: HubServer, settings: Settings) -> None:
    server.repositories["someone/lora"].files["adapter_model.safetensors"] = b"<html>log in</html>"
    with pytest.raises(SourceError, match="not a usable safetensors file"):
        get(model(LORA), settings)


def test_a_folder_of_the_users_own_is_used_where_it_is_and_never_removed(
    settings: Settings, tmp_path: Path
) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    for name, content in checkpoint_files().items():
        (own / name).write_bytes(content)
    mine = model(repo="", path=str(own))
    assert get(mine, settings) == own
    assert is_here(mine, settings)
    assert remove(mine, settings) == 0
    assert (own / "config.json").is_file()
    with pytest.raises(SourceMissing, match="does not exist"):
        get(model(repo="", path=str(tmp_path / "none")), settings)
