"""./rally, the bootstrap: installs once, notices what changed, mends what was interrupted. Pip itself is not run."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def load(path: Path) -> ModuleType:
    """The script as a module; its folder is the repository it works on."""
    loader = SourceFileLoader("rally", str(path))
    spec = importlib.util.spec_from_loader("rally", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Clone:
    """A repository with the script in it, and a pip that only takes notes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("rally", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        self.installed: list[list[str]] = []
        self.pip: Callable[[], None] = lambda: None
        self.rally = load(folder / "rally")
        monkeypatch.setattr(self.rally, "create_venv", self._create_venv)
        monkeypatch.setattr(self.rally, "outer_pip", lambda *_: None)
        monkeypatch.setattr(self.rally, "run_pip", self._run_pip)

    def _create_venv(self) -> None:
        self.rally.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        self.rally.PYTHON.touch()

    def _run_pip(self, *command: str) -> None:
        self.installed.append(list(command))
        self.pip()

    def needs(self, *groups: str) -> int:
        """Ask for these groups; how many times pip has run by then."""
        self.rally.install(list(groups))
        return len(self.installed)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # the script takes it away, monkeypatch puts it back
    monkeypatch.chdir(tmp_path)  # and goes elsewhere
    return Clone(tmp_path, monkeypatch)


def test_the_second_start_asks_pip_for_nothing(clone: Clone) -> None:
    assert (clone.needs(), clone.needs()) == (1, 1)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_other_requirements_are_installed(clone: Clone, name: str) -> None:
    clone.needs()
    with (clone.folder / name).open("a") as file:
        file.write("# changed\n")
    assert (clone.needs(), clone.needs()) == (2, 2)


def test_the_test_group_is_added_once_and_kept_from_then_on(clone: Clone) -> None:
    clone.needs()
    assert (clone.needs("test"), clone.needs("test"), clone.needs()) == (2, 2, 2)
    with (clone.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    clone.needs()
    assert any(word.startswith("pytest>=") for word in clone.installed[-1])


def test_an_extra_is_added_once_and_kept_from_then_on(clone: Clone) -> None:
    assert [clone.rally.main(["add", "hf"]) for _ in range(2)] == [0, 0]
    assert clone.needs("test") == 2
    assert all(any(word.startswith("transformers>=") for word in command) for command in clone.installed)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["hg"], "There is no extra 'hg'."),
        ([], "Nothing to add was named."),
        (["test"], "There is no extra 'test'."),
    ],
)
def test_what_is_no_extra_is_not_added(
    clone: Clone, capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
) -> None:
    assert clone.rally.main(["add", *args]) == 1
    assert clone.installed == []
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert "./rally add hf" in said


def test_a_group_that_is_gone_needs_nothing(clone: Clone) -> None:
    clone.needs()
    clone.rally.STAMP.write_text('{"digest": "old", "groups": ["bygone"]}')
    assert clone.needs() == 2


def test_pip_is_held_to_the_pinned_versions_and_builds_nothing(clone: Clone) -> None:
    clone.needs()
    assert clone.installed[0][-2:] == ["-e", str(clone.folder)]
    assert " ".join(clone.rally.PIP_OPTIONS).startswith("--only-binary :all: ")
    assert str(clone.folder / "constraints.txt") in clone.rally.PIP_OPTIONS


@pytest.mark.parametrize("fate", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_installation_begins_anew(clone: Clone, fate: type[BaseException]) -> None:
    def interrupted() -> None:
        (clone.folder / ".venv" / "half a package").touch()
        raise fate

    clone.pip = interrupted
    with pytest.raises(fate):
        clone.needs()
    clone.pip = lambda: None
    assert clone.needs() == 2
    assert not (clone.folder / ".venv" / "half a package").exists()


def test_a_virtual_environment_without_its_python_begins_anew(clone: Clone) -> None:
    clone.needs()
    clone.rally.PYTHON.unlink()
    assert clone.needs() == 2


def test_a_moved_repository_is_installed_again(
    clone: Clone, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.needs()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(clone.folder, elsewhere, dirs_exist_ok=True)
    assert Clone(elsewhere, monkeypatch).needs() == 1


def test_a_note_that_cannot_be_read_means_installing(clone: Clone) -> None:
    clone.needs()
    clone.rally.STAMP.write_text("[broken")
    assert clone.needs() == 2


# --- pythons ------------------------------------------------------------------------------------------------


@pytest.fixture
def rally() -> ModuleType:
    return load(ROOT / "rally")


def find_only(*names: str) -> Callable[..., Any]:
    """`find_spec` on a Python that has none but these modules of those asked about."""
    return lambda name: object() if name in names else None


@pytest.fixture
def pips(tmp_path: Path, rally: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip is asked for, on a machine whose .venv is in a folder of the test's."""
    monkeypatch.setattr(rally, "VENV", tmp_path / "venv")
    monkeypatch.setattr(rally, "PYTHON", tmp_path / "venv" / "bin" / "python")
    asked: list[list[str]] = []
    monkeypatch.setattr(rally, "run_pip", lambda *command: asked.append(list(command)))
    return asked


def test_without_ensurepip_the_pip_outside_installs_one_inside(
    tmp_path: Path, rally: ModuleType, pips: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rally.importlib.util, "find_spec", find_only("pip"))
    rally.create_venv()
    rally.outer_pip("pip")
    assert rally.PYTHON.exists()
    assert not list(tmp_path.glob("venv/**/site-packages/pip"))
    assert pips == [[sys.executable, "-m", "pip", "--python", str(rally.PYTHON), "install", "pip"]]


def test_without_a_pip_outside_the_one_of_ensurepip_installs(
    tmp_path: Path, rally: ModuleType, pips: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rally.importlib.util, "find_spec", find_only("ensurepip"))
    rally.create_venv()
    rally.outer_pip("pip")
    assert list(tmp_path.glob("venv/**/site-packages/pip"))
    assert pips == [[str(rally.PYTHON), "-m", "pip", "install", "pip"]]


def test_without_any_pip_the_package_to_install_is_named(
    rally: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rally.importlib.util, "find_spec", find_only())
    with pytest.raises(rally.Unable) as unable:
        rally.create_venv()
    assert "python3-pip" in unable.value.args[1]


def test_an_old_python_becomes_a_newer_one(rally: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(rally.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(rally.sys, "argv", ["rally", "serve", "--port", "9"])
    monkeypatch.setattr(rally.shutil, "which", lambda name: f"/bin/{name}" if name == "python3.12" else None)
    monkeypatch.setattr(rally.os, "execv", lambda _, args: became.append(args))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11"):  # execv does not return where it is real
        rally.newer_python()
    assert became == [["/bin/python3.12", str(ROOT / "rally"), "serve", "--port", "9"]]


# --- errors -------------------------------------------------------------------------------------------------

NO_NETWORK = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'
ERROR: Could not find a version that satisfies the requirement aiosqlite (from versions: none)
ERROR: No matching distribution found for aiosqlite
"""


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (NO_NETWORK, "The package registry cannot be reached."),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "The disk is full."),
        (
            "ERROR: No matching distribution found for xllamacpp",
            "No matching distribution found for xllamacpp",
        ),
        ("ERROR: something new", "Otherwise."),
        ("", "Otherwise."),
    ],
)
def test_what_pip_says_becomes_one_sentence(rally: ModuleType, output: str, sentence: str) -> None:
    assert rally.explain(output, "Otherwise.")[0] == sentence


def test_an_error_is_a_sentence_and_a_next_step_without_traceback(
    clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise clone.rally.Unable("It failed.", "Try again.")

    clone.pip = fail
    assert clone.rally.main(["serve"]) == 1
    assert capsys.readouterr().err.endswith("\nIt failed.\nTry again.\n")


def test_a_disk_that_is_full_is_one_sentence_too(clone: Clone, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    clone.pip = full
    assert clone.rally.main(["serve"]) == 1
    assert "\nThe disk is full.\n" in capsys.readouterr().err


def test_browser_tests_without_a_browser_say_how_to_get_one(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(clone.folder))
    monkeypatch.setattr(clone.rally.shutil, "which", lambda _: None)
    assert clone.rally.main(["test", "-m", "browser"]) == 1
    assert "apt install chromium" in capsys.readouterr().err


def test_what_is_no_door_goes_to_rallychat(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, ...]] = []

    def become(*args: str) -> int:
        became.append(args)
        return 0

    monkeypatch.setattr(clone.rally, "become", become)
    for args in ([], ["serve", "--port", "9"], ["test", "-k", "x"]):
        assert clone.rally.main(args) == 0
    assert became == [
        ("-P", "-m", "rallychat"),
        ("-P", "-m", "rallychat", "serve", "--port", "9"),
        ("-m", "pytest", "-k", "x"),
    ]


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((1, 0), 1), ((0, 1), 1)])
def test_the_whole_suite_runs_to_its_end_and_fails_with_any_part(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int], code: int
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command[3:])
        return subprocess.CompletedProcess(command, codes[len(ran) - 1])

    monkeypatch.setattr(clone.rally.subprocess, "run", run)
    assert clone.rally.main(["test"]) == code
    assert ran == list(clone.rally.WHOLE)


# --- versions -----------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Name and version of every line of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


def test_everything_that_is_required_is_pinned_to_a_version_that_will_do() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = (project["dependency-groups"], project["project"]["optional-dependencies"])
    added = [line for table in tables for lines in table.values() for line in lines]
    required = [Requirement(line) for line in (*project["project"]["dependencies"], *added)]
    missing = [
        str(each)
        for each in required
        if not each.specifier.contains(pins().get(canonicalize_name(each.name), "0"))
    ]
    assert missing == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_the_script_can_be_run() -> None:
    assert os.access(ROOT / "rally", os.X_OK)
