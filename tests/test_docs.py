"""Docs that cannot rot: what they name exists, and what exists is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic.fields import FieldInfo

from rallychat.cli import app
from rallychat.cli.slash import COMMANDS
from rallychat.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOT_SETTINGS = {"RALLYCHAT_CONFIG", "RALLYCHAT_DEBUG", "RALLYCHAT_CHROMIUM", "RALLYCHAT_TEST_GGUF"}
"""Variables that are read before there are settings."""


def commands() -> dict[str, Any]:
    """Every command by its full name, groups included."""
    return dict(_walk(typer.main.get_command(app), "rallychat"))


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for sub, each in getattr(command, "commands", {}).items():
        yield from _walk(each, f"{name} {sub}")


def options(command: Any) -> set[str]:
    """What `--help` lists, `--help` itself left out."""
    return {opt for param in command.params if param.param_type_name == "option" for opt in param.opts}


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, and inline code."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """`rallychat ...` as written in a page: the command's name and the words after it."""
    known = commands()
    for line in code(text):
        found = re.match(r"(?:\$ |.*\| )?(?:\./rally|rallychat)((?: .*)?)$", line.strip())
        if not found:
            continue
        words = found[1].split("#")[0].split()
        if words and words[0] in ("test", "check", "add"):  # doors of ./rally: the rest is for other programs
            continue
        name = "rallychat"
        while words and f"{name} {words[0]}" in known:
            name = f"{name} {words.pop(0)}"
        yield name, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_in_the_docs_exists(page: Path) -> None:
    known = commands()
    for name, words in calls(page.read_text(encoding="utf-8")):
        if hasattr(known[name], "commands"):
            assert [word for word in words if word[0].isalpha() and word != "..."] == [], (
                f"{page.name}: {name}"
            )
        given = {word.strip("[]").split("=")[0] for word in words if word.strip("[").startswith("--")}
        assert given <= options(known[name]) | {"--help"}, f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_in_the_docs_exists(page: Path) -> None:
    named = set(re.findall(r"\bRALLYCHAT_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named <= {f"RALLYCHAT_{name.upper()}" for name in Settings.model_fields} | NOT_SETTINGS


def section(name: str) -> str:
    """The part of docs/cli.md under a command's heading."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    found = re.search(rf"^## `{re.escape(name)}(?: \S+)*`$(.*?)(?=^## |\Z)", page, re.S | re.M)
    assert found, f"docs/cli.md has no section for `{name}`"
    return found[1]


@pytest.mark.parametrize(
    "name", [name for name, command in commands().items() if not hasattr(command, "commands")]
)
def test_every_command_is_documented_with_the_help_it_prints(name: str) -> None:
    text = section(name)
    for param in commands()[name].params:
        names = ", ".join(f"`{opt}`" for opt in param.opts)
        first = re.escape(names) if param.param_type_name == "option" else "`[^`]+`"
        assert re.search(rf"^\| {first} \| {re.escape(param.help)} \|$", text, re.M), (
            f"docs/cli.md, `{name}`: no row for {names}: {param.help}"
        )


def test_every_slash_command_is_documented() -> None:
    text = section("rallychat chat")
    missing = [
        command.usage
        for command in COMMANDS.values()
        if f"| `{command.usage.replace('|', chr(92) + '|')}` | {command.help} |" not in text
    ]
    assert missing == []


@pytest.mark.parametrize(("name", "field"), list(Settings.model_fields.items()))
def test_every_setting_is_documented_with_its_default(name: str, field: FieldInfo) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {shown(field)} | {field.description} |" in page


def shown(field: FieldInfo) -> str:
    """A default as TOML writes it."""
    if field.default_factory is not None:
        return "by the platform"
    match field.default:
        case None | ():
            return "-"
        case tuple(values):
            return f"`{json.dumps(values, default=str)}`"
        case bool(value):
            return f"`{str(value).lower()}`"
        case str(value):
            return f'`"{value}"`'
        case value:
            return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


PROMISES = re.findall(
    r"^\| (?!promise |---)(.+?) \| (.+?) \|$",
    (ROOT / "docs" / "security.md").read_text(encoding="utf-8"),
    re.M,
)


@pytest.mark.parametrize(("promise", "held_by"), PROMISES, ids=[promise[:40] for promise, _ in PROMISES])
def test_every_promise_names_tests_that_exist(promise: str, held_by: str) -> None:
    source = ""
    assert re.search(r"`tests/\w", held_by), f"no test holds: {promise}"
    for name in re.findall(r"`([^`]+)`", held_by):
        if name.startswith("tests/"):
            source = (ROOT / name).read_text(encoding="utf-8")
            assert "def test_" in source
        else:
            assert f"def {name}(" in source, f"{name} is not in the file before it"
