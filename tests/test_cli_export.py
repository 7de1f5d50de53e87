"""`rallychat export` and `rallychat import`, as a person types them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests.cli_world import Person

TALK = {"title": "Terns", "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(tmp_path, monkeypatch, capsys)


def titles(data: Path) -> list[str]:
    async def listed() -> list[str]:
        async with ConversationStore.open(Settings(data_dir=data)) as store:
            return [one.title for one in await store.list()]

    return asyncio.run(listed())


def test_what_is_exported_is_imported_elsewhere_and_twice_does_no_harm(person: Person) -> None:
    other = {"title": "Second", "messages": [{"role": "user", "content": "Ho"}]}
    (person.home / "in.json").write_text(json.dumps({"conversations": [TALK, other]}))
    done = person.types("import", "in.json")
    assert (done.code, done.out) == (0, "2 imported (2 messages), 0 were here already, 0 left out.\n")
    assert person.types("export", "all.json").code == 0
    elsewhere = str(person.home / "elsewhere")
    again = "2 imported (2 messages), 0 were here already, 0 left out.\n"
    assert person.types("import", "all.json", "--data-dir", elsewhere).out == again
    assert sorted(titles(Path(elsewhere))) == ["Second", "Terns"]
    twice = "0 imported (0 messages), 2 were here already, 0 left out.\n"
    assert person.types("import", "all.json", "--data-dir", elsewhere).out == twice
    assert person.types("import", "all.json").out == twice


def test_markdown_goes_to_standard_output_unless_a_file_is_named(person: Person) -> None:
    (person.home / "in.json").write_text(json.dumps(TALK))
    person.types("import", "in.json")
    assert person.types("export", "--markdown").out == "# Terns\n\n*System:* Be brief.\n\n## You\n\nHi\n"
    assert person.types("export").out.startswith('{"format":"rallychat"')


def test_an_export_overwrites_nothing_and_an_import_says_what_it_leaves_out(person: Person) -> None:
    (person.home / "in.json").write_text(json.dumps({"conversations": [TALK, {"title": "no messages"}, 7]}))
    done = person.types("import", "in.json")
    assert done.code == 3
    assert done.out.splitlines()[0] == "1 imported (1 messages), 0 were here already, 2 left out."
    assert "Conversation 3 was left out: it is not an object." in done.out
    refused = person.types("export", "in.json")
    assert (refused.code, "in.json is there already." in refused.err) == (1, True)
    assert (
        person.types("import", "nothing.json").err
        == "nothing.json cannot be read: No such file or directory.\n"
    )
    assert person.types("import", str(person.home)).code == 1
    assert "ben" in person.types("export", "--user", "ben").err


def test_each_user_has_conversations_of_their_own(person: Person) -> None:
    person.types("users", "add", "ben", stdin="a long password\n")
    (person.home / "in.json").write_text(json.dumps(TALK))
    assert person.types("import", "in.json", "--user", "ben").code == 0
    assert "Terns" in person.types("export", "--user", "ben").out
    assert "Terns" not in person.types("export").out
