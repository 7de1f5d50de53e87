"""What runs a model: its GGUF file on a CPU, its checkpoint on a GPU, and what a person says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rallychat.catalog import Adapter, Catalog, Checkpoint, Model, engines, sizing
from rallychat.catalog.precision import Machine
from rallychat.catalog.types import FileWeights, NoWeights
from rallychat.cli import doctor
from rallychat.cli.serve import tell_estimate
from rallychat.pool.pool import worker_spec
from rallychat.settings import Settings

GGUF = FileWeights(kind="file", path="m.gguf", size=1)
BASE = Checkpoint(repo="owner/base", adapters=(Adapter(name="lora", repo="someone/lora"),))


def model(**given: object) -> Model:
    return Model.model_validate({"id": "m", "name": "M", "family": "chatml"} | given)


def machine(
    monkeypatch: pytest.MonkeyPatch, device: str, *, libraries: bool = True, torch: bool = True
) -> None:
    monkeypatch.setattr(engines, "this_machine", lambda: Machine(device, (2**34,)))  # type: ignore[arg-type]
    monkeypatch.setattr(engines, "missing_libraries", lambda: [] if libraries else ["torch"])
    monkeypatch.setattr(engines, "torch_has", lambda _: torch)


@pytest.mark.parametrize(
    ("device", "libraries", "torch", "asked", "engine"),
    [
        ("cpu", True, True, "auto", "llamacpp"),
        ("cuda", True, True, "auto", "transformers"),
        ("mps", True, True, "auto", "transformers"),
        ("cuda", False, True, "auto", "llamacpp"),
        ("cuda", True, False, "auto", "llamacpp"),
        ("cpu", True, True, "transformers", "transformers"),
        ("cuda", True, True, "llamacpp", "llamacpp"),
    ],
)
def test_a_model_with_both_is_run_by_what_suits_the_machine_or_by_what_is_said(
    monkeypatch: pytest.MonkeyPatch, device: str, libraries: bool, torch: bool, asked: str, engine: str
) -> None:
    machine(monkeypatch, device, libraries=libraries, torch=torch)
    both = model(weights=GGUF, checkpoint=BASE)
    assert engines.engine_for(both, Settings.load(engine=asked)) == engine


def test_what_a_model_has_decides_whatever_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cuda")
    assert engines.engine_for(model(weights=GGUF), Settings(engine="transformers")) == "llamacpp"
    assert engines.engine_for(model(checkpoint=BASE), Settings(engine="llamacpp")) == "transformers"
    echo = model(weights=NoWeights(kind="none"), engine="echo")
    assert engines.engine_for(echo, Settings(engine="transformers")) == "echo"


def test_a_file_may_say_it_and_the_settings_go_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cpu")
    pinned = model(weights=GGUF, checkpoint=BASE, engine="transformers")
    assert engines.engine_for(pinned, Settings()) == "transformers"
    assert engines.engine_for(pinned, Settings(engine="llamacpp")) == "llamacpp"


def test_the_catalog_s_models_know_their_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cuda")
    settings = Settings(data_dir=tmp_path)
    file = settings.catalog_dir / "models" / "both.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'name = "Both"\nfamily = "chatml"\n[weights]\nkind = "file"\npath = "m.gguf"\n[checkpoint]\nrepo = "a/b"\n'
    )
    assert Catalog.load(settings).find("both").engine == "transformers"
    forced = Settings(data_dir=tmp_path, engine="llamacpp")
    assert Catalog.load(forced).find("both").engine == "llamacpp"


@pytest.mark.parametrize(("said", "has"), [("cuda: Optional[str] = '12.8'", True), ("cuda = None", False)])
def test_a_torch_for_cpus_cannot_use_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, has: bool
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "version.py").write_text(f"__version__ = '2.13.0'\n{said}\nhip: Optional[str] = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)
    engines.torch_has.cache_clear()
    assert engines.torch_has("cuda") is has
    assert engines.torch_has("mps") is True
    engines.torch_has.cache_clear()


def test_the_worker_is_told_what_to_open_and_how(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, dtype="float16", remote_code=("someone/lora",), slots=2)
    one = model(checkpoint=BASE, options={"quantize": "int8"}, window=512)
    spec = worker_spec(one, str(tmp_path / "base"), settings)
    assert (spec.engine, spec.model, spec.path) == ("transformers", "m", str(tmp_path / "base"))
    assert spec.options == {
        "adapters": {"lora": str(settings.models_dir / "checkpoints" / "someone" / "lora")},
        "dtype": "float16",
        "quantize": "int8",
        "multi_gpu": False,
        "remote_code": True,
    }
    assert worker_spec(one, "", Settings(data_dir=tmp_path)).options["remote_code"] is False  # type: ignore[index]


@pytest.mark.parametrize(
    ("device", "libraries", "torch", "state", "words"),
    [
        ("cpu", False, True, "ok", "./rally add hf"),
        ("cuda", True, False, "note", "built for CPUs"),
        ("cuda", True, True, "ok", "NVIDIA"),
    ],
)
def test_the_doctor_says_what_checkpoints_would_run_on(
    monkeypatch: pytest.MonkeyPatch, device: str, libraries: bool, torch: bool, state: str, words: str
) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine(device, (2**34,)))  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "missing_libraries", lambda: [] if libraries else ["torch"])
    monkeypatch.setattr(doctor, "torch_has", lambda _: torch)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1")
    found = doctor.checkpoints()
    assert found.state == state
    assert words in found.detail + found.advice


def test_serve_says_what_a_checkpoint_will_take_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "this_machine", lambda: Machine("cuda", (80 * 10**9,)))
    said = Console(record=True, file=io.StringIO(), width=120)
    known = BASE.model_copy(update={"parameters": 7 * 10**9})
    tell_estimate(model(checkpoint=known, name="Seven"), Settings(data_dir=tmp_path), said)
    assert said.export_text() == "Loading Seven as bfloat16: about 14.0 GB of 72.5 GB of memory.\n"
    tell_estimate(model(weights=GGUF), Settings(data_dir=tmp_path), said)
    assert said.export_text() == ""
