"""`rallychat users` and `rallychat keys`: on the database itself, beside a server or without one."""

from __future__ import annotations

import asyncio
import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner, Result

from rallychat.accounts import Accounts
from rallychat.cli.commands import app
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests.accounts_world import PASSWORD, cheap_passwords

__all__ = ["cheap_passwords"]


@pytest.fixture
def cli(tmp_path: Path) -> Any:
    def call(*words: str, given: str = "", ok: bool = True) -> Result:
        done = CliRunner().invoke(app, [*words, "--data-dir", str(tmp_path)], input=given)
        assert (done.exit_code == 0) is ok, done.output
        return done

    return call


def test_an_account_is_made_shown_changed_and_removed(cli: Any, tmp_path: Path) -> None:
    said = cli("users", "add", "Ada", "--admin", "--email", "ada@example.com", given=f"{PASSWORD}\n").stdout
    assert "ada (admin) can log in." in said
    assert "asks everybody to log in" in said
    cli("users", "add", "ben", given=f"{PASSWORD}\n")
    cli("users", "limit", "ben", "--concurrent", "2", "--tokens", "1000")
    cli("users", "disable", "ben")
    listed = {user["name"]: user for user in json.loads(cli("users", "list", "--json").stdout)}
    assert (listed["ada"]["role"], listed["ada"]["email"]) == ("admin", "ada@example.com")
    assert (listed["ben"]["disabled"], listed["ben"]["limits"]) == (
        True,
        {"concurrent": 2, "tokens_per_minute": 1000},
    )
    assert "disabled" in cli("users", "list").stdout
    cli("users", "enable", "ben")
    cli("users", "role", "ben", "admin")
    cli("users", "passwd", "ben", given="another password\n")
    cli("users", "export", "ben", str(tmp_path / "ben.zip"))
    assert "users.json" in zipfile.ZipFile(tmp_path / "ben.zip").namelist()
    assert "is there" not in cli("users", "remove", "ben", given="n\n", ok=False).stdout
    cli("users", "remove", "ben", "--yes")
    assert [user["name"] for user in json.loads(cli("users", "list", "--json").stdout)] == ["ada"]


def test_the_audit_log_is_told_by_name(cli: Any) -> None:
    cli("users", "add", "ada", "--admin", given=f"{PASSWORD}\n")
    cli("keys", "create", "ci", "--user", "ada")
    newest, first = json.loads(cli("users", "audit", "--json").stdout)
    assert (first["action"], first["target_name"]) == ("user.add", "ada")
    assert newest["target_name"].startswith("ci (")
    assert json.loads(cli("users", "audit", "--json", "--limit", "1").stdout) == [newest]
    assert "command line" in cli("users", "audit").stdout


def test_invitations_are_listed_and_taken_back(cli: Any) -> None:
    cli("users", "invite", "--note", "for [Grace]", "--admin")
    assert "for [Grace]" in cli("users", "invites").stdout
    (invite,) = json.loads(cli("users", "invites", "--json").stdout)
    assert (invite["role"], invite["note"]) == ("admin", "for [Grace]")
    cli("users", "withdraw", invite["id"])
    assert json.loads(cli("users", "invites", "--json").stdout) == []
    assert "no invitation" in str(cli("users", "withdraw", invite["id"], ok=False).exception)


def test_sessions_are_listed_and_ended_one_by_one_or_all_and_that_is_noted(cli: Any, tmp_path: Path) -> None:
    cli("users", "add", "ada", given=f"{PASSWORD}\n")

    async def logged_in(devices: int) -> None:
        settings = Settings(data_dir=tmp_path)
        async with ConversationStore.open(settings) as store:
            ada = await store.people.named("ada")
            for number in range(devices):
                await Accounts(store, settings).enter(ada, device=f"[{number}]", address="::1")

    def listed() -> list[dict[str, str]]:
        return cast(list[dict[str, str]], json.loads(cli("users", "sessions", "ada", "--json").stdout))

    asyncio.run(logged_in(3))
    assert [session["device"] for session in listed()] == ["[2]", "[1]", "[0]"]
    assert "[1]" in cli("users", "sessions", "ada").stdout
    assert "1 session of ada ended." in cli("users", "logout", "ada", listed()[0]["id"]).stdout
    assert [session["device"] for session in listed()] == ["[1]", "[0]"]
    assert "no session" in str(cli("users", "logout", "ada", "sess_nothing", ok=False).exception)
    assert "2 sessions of ada ended." in cli("users", "logout", "ada").stdout
    assert listed() == []
    newest, before, _ = json.loads(cli("users", "audit", "--json").stdout)
    assert [(each["action"], each["target_name"]) for each in (newest, before)] == [
        ("user.logout", "ada")
    ] * 2


def test_who_reads_or_copies_everything_of_somebody_is_noted(cli: Any, tmp_path: Path) -> None:
    cli("backup", str(tmp_path / "before.zip"))  # nobody has an account: nothing to note
    cli("users", "add", "ada", given=f"{PASSWORD}\n")
    cli("users", "export", "ada", str(tmp_path / "ada.zip"))
    cli("export", str(tmp_path / "ada.json"), "--user", "ada")
    cli("backup", str(tmp_path / "all.zip"))
    other = ["--data-dir", str(tmp_path / "other")]
    assert CliRunner().invoke(app, ["restore", str(tmp_path / "all.zip"), *other]).exit_code == 0
    done = [("user.add", "ada"), ("user.export", "ada"), ("user.export", "ada")]
    assert deeds(cli("users", "audit", "--json").stdout) == [*done, ("backup", "all.zip")]
    restored = CliRunner().invoke(app, ["users", "audit", "--json", *other]).stdout
    assert deeds(restored) == [*done, ("restore", "all.zip")]


def deeds(told: str) -> list[tuple[str, str]]:
    return [(deed["action"], deed["target_name"]) for deed in reversed(json.loads(told))]


@pytest.mark.parametrize("kind", ["users", "keys"])
def test_every_command_for_people_and_keys_takes_a_database(kind: str) -> None:
    commands = typer.main.get_command(app).commands[kind].commands  # type: ignore[attr-defined]
    taken = {name: {opt for param in each.params for opt in param.opts} for name, each in commands.items()}
    assert [name for name, options in taken.items() if "--database-url" not in options] == []


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (["users", "add", "a b"], PASSWORD, "A name has"),
        (["users", "add", "ada"], "short", "at least 10"),
        (["users", "passwd", "nobody"], PASSWORD, "no user 'nobody'"),
        (["users", "role", "nobody", "king"], "", "not a role"),
        (["keys", "create", "k", "--scope", "everything"], "", "Scopes are"),
        (["keys", "create", "k", "--user", "nobody"], "", "no user"),
        (["keys", "revoke", "key_nothing"], "", "no key"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    cli: Any, words: list[str], given: str, said: str
) -> None:
    assert said in str(cli(*words, given=given, ok=False).exception)


def test_a_key_is_printed_alone_listed_by_its_beginning_and_revoked_by_it(cli: Any) -> None:
    done = cli("keys", "create", "nightly", "--scope", "chat", "--days", "9")
    secret = done.stdout.strip()
    assert secret.startswith("rally_")
    assert len(secret) == 49
    (key,) = json.loads(cli("keys", "list", "--json").stdout)
    assert (key["name"], key["prefix"], key["scopes"], key["user"]) == (
        "nightly",
        secret[:12],
        ["chat"],
        "local",
    )
    assert secret not in cli("keys", "list").stdout
    assert "is useless now" in cli("keys", "revoke", secret[:12]).stdout
    assert json.loads(cli("keys", "list", "--json").stdout)[0]["revoked_at"] is not None


def test_a_name_that_looks_like_markup_is_listed_as_it_is(cli: Any) -> None:
    cli("keys", "create", "[/x]")
    assert "[/x]" in cli("keys", "list").stdout
    cli("users", "add", "ada", "--email", "[/x]@example.com", given=f"{PASSWORD}\n")
    assert "[/x]@example.com" in cli("users", "list").stdout


def test_no_name_commands_the_terminal(cli: Any) -> None:
    cli("keys", "create", "\x1b[2J\x9b")
    told = [cli("keys", "list").stdout, cli("users", "audit").stdout]
    assert ["\ufffd[2J\ufffd" in each for each in told] == [True, True]
    assert {character for character in "".join(told) if unicodedata.category(character) == "Cc"} == {"\n"}


async def test_an_invitation_printed_while_a_server_runs_is_good_there(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    async with ConversationStore.open(settings) as store:
        from rallychat.cli.people import invite_user

        await invite_user(settings, admin=False, note="", days=1, url="https://chat.example/")
        (invite,) = await Accounts(store, settings).people.invites()
        assert invite.role == "member"
