"""Accounts as they are kept: passwords, sessions, invitations, keys, and what is noted of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from rallychat.accounts import SCOPES, Accounts, Limits, User, passwords
from rallychat.accounts.accounts import LONGEST, checked_name
from rallychat.accounts.throttle import FREE
from rallychat.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    LoginFailed,
    NotFound,
    StoreError,
    TooManyTries,
)
from rallychat.identity import LOCAL, Person, acting_as
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.store.account_tables import api_keys, sessions
from tests.accounts_world import PASSWORD, cheap_passwords, people
from tests.gguf_file import gguf_bytes

__all__ = ["cheap_passwords"]

WHERE = {"device": "Firefox", "address": "192.0.2.1"}


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    settings = Settings(data_dir=tmp_path)
    async with ConversationStore.open(settings) as store:
        yield Accounts(store, settings)


async def test_the_right_password_opens_a_session_which_is_known_again_until_it_ends(
    accounts: Accounts,
) -> None:
    user = await accounts.add("Ada", PASSWORD, role="admin")
    entry = await accounts.log_in(" ADA ", PASSWORD, **WHERE)
    found = await accounts.of_session(entry.token)
    assert found is not None
    assert (found[0].id, found[1]) == (entry.session.id, Person(user.id, "admin", "session"))
    with acting_as(user.id):
        await accounts.credentials.end(user.id, entry.session.id)
    assert await accounts.of_session(entry.token) is None


@pytest.mark.parametrize("name", ["ada", "nobody", "", "a b", "\0", "ben"])
async def test_whatever_is_wrong_a_login_fails_in_the_same_words(accounts: Accounts, name: str) -> None:
    await accounts.add("ada", PASSWORD)
    ben = await accounts.add("ben", PASSWORD)
    await accounts.people.change(ben.id, disabled=True)
    given = PASSWORD if name == "ben" else "wrong password"
    with pytest.raises(LoginFailed, match=r"^Name and password do not belong together\.$"):
        await accounts.log_in(name, given, **WHERE)


async def test_an_unknown_name_costs_as_much_hashing_as_a_known_one(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = passwords._HASHER.verify

    class Counting:
        hash = passwords._HASHER.hash

        @staticmethod
        def verify(stored: str, password: bytes) -> bool:
            verified.append(stored)
            return real(stored, password)

    await accounts.add("ada", PASSWORD)
    monkeypatch.setattr(passwords, "_HASHER", Counting)
    for name in ("ada", "nobody"):
        with pytest.raises(LoginFailed):
            await accounts.log_in(name, "wrong password", **WHERE)
    known, unknown = (stored.split("$")[1:4] for stored in verified)
    assert known == unknown


async def test_a_session_ends_by_itself_when_it_is_old_or_idle(accounts: Accounts) -> None:
    user = await accounts.add("ada", PASSWORD)
    for column, ago in (("expires_at", LONGEST), ("seen_at", timedelta(days=15))):
        entry = await accounts.enter(user, **WHERE)
        async with accounts.credentials._database.write() as db:
            this = sessions.c.id == entry.session.id
            earlier = getattr(entry.session, column) - ago
            await db.execute(update(sessions).where(this).values(**{column: earlier}))
        assert await accounts.of_session(entry.token) is None


async def test_another_password_ends_every_other_session(accounts: Accounts) -> None:
    user = await accounts.add("ada", PASSWORD)
    here, there = [await accounts.enter(user, **WHERE) for _ in range(2)]
    with acting_as(Person(user.id, via="session")):
        with pytest.raises(LoginFailed):
            await accounts.change_password("wrong", "a new password", address="::1", session=here.session.id)
        await accounts.change_password(PASSWORD, "a new password", address="::1", session=here.session.id)
    assert await accounts.of_session(here.token) is not None
    assert await accounts.of_session(there.token) is None
    await accounts.log_in("ada", "a new password", **WHERE)


def during(patch: pytest.MonkeyPatch, name: str, deed: Callable[[], Awaitable[object]]) -> None:
    """Does something once while a password is compared (`fits`) or hashed (`hashed`)."""
    real = getattr(passwords, name)

    async def meanwhile(*given: Any) -> Any:
        patch.setattr(passwords, name, real)
        done = await real(*given)
        await deed()
        return done

    patch.setattr(passwords, name, meanwhile)


async def reset(accounts: Accounts, user: User) -> None:
    with acting_as(LOCAL):
        await accounts.set_password(user, "a new password")


MEANWHILE: dict[str, Callable[[Accounts, User], Awaitable[object]]] = {
    "password": reset,
    "disabled": lambda accounts, user: accounts.people.change(user.id, disabled=True),
    "erased": lambda accounts, user: accounts.belongings.erase(user.id),
}


@pytest.mark.parametrize("change", MEANWHILE)
async def test_a_login_under_way_does_not_outlive_what_logs_out_everywhere(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    user = await accounts.add("ada", PASSWORD)
    during(monkeypatch, "fits", lambda: MEANWHILE[change](accounts, user))
    with pytest.raises(LoginFailed, match=r"^Name and password do not belong together\.$"):
        await accounts.log_in("ada", PASSWORD, **WHERE)
    assert await accounts.credentials.sessions(user.id) == []


@pytest.mark.parametrize("change", ["disabled", "erased"])
async def test_nobody_enters_who_was_disabled_meanwhile(accounts: Accounts, change: str) -> None:
    user = await accounts.add("ada", PASSWORD)
    await MEANWHILE[change](accounts, user)
    with pytest.raises(LoginFailed):
        await accounts.enter(user, **WHERE)


async def test_an_old_password_does_not_come_back_by_being_hashed_anew(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await accounts.add("ada", PASSWORD)
    monkeypatch.setattr(passwords, "is_outdated", lambda stored: True)
    during(monkeypatch, "hashed", lambda: reset(accounts, user))
    await accounts.log_in("ada", PASSWORD, **WHERE)
    assert await accounts.credentials.sessions(user.id) == []
    await accounts.log_in("ada", "a new password", **WHERE)


async def test_who_changes_a_password_that_was_reset_meanwhile_changes_nothing(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await accounts.add("ada", PASSWORD)
    here = await accounts.enter(user, **WHERE)
    during(monkeypatch, "fits", lambda: reset(accounts, user))
    with acting_as(Person(user.id, via="session")), pytest.raises(Conflict):
        await accounts.change_password(PASSWORD, "a third one", address="::1", session=here.session.id)
    await accounts.log_in("ada", "a new password", **WHERE)


async def test_passwords_are_stored_as_argon2_and_nothing_secret_is_in_the_database(
    accounts: Accounts, tmp_path: Path
) -> None:
    user = await accounts.add("ada", PASSWORD)
    entry = await accounts.enter(user, **WHERE)
    token, _ = await accounts.invite()
    secret, key = await accounts.create_key("script", user_id=user.id)
    raw = raw_database(tmp_path)
    for hidden in (PASSWORD, entry.token, token, secret):
        assert hidden.encode() not in raw
    if raw:  # else it is a PostgreSQL server's
        assert b"$argon2id$" in raw
    stored = await accounts.people.password("ada")
    assert stored is not None
    assert (stored[1] or "").startswith("$argon2id$")
    assert key.prefix == secret[:12]


def raw_database(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("rallychat.db*"))


@pytest.mark.parametrize("password", ["short", "x" * 257, "aaaaaaaaaaaaaaa", "ada.lovelace"])
async def test_a_password_that_is_easily_guessed_is_refused(accounts: Accounts, password: str) -> None:
    with pytest.raises(InvalidRequest):
        await accounts.add("ada.lovelace", password)


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 101, "a\nb", "a/b", "<b>"])
def test_a_name_that_cannot_be_typed_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name)


async def test_a_name_is_taken_once_however_it_is_written(accounts: Accounts) -> None:
    await accounts.add("Zoë", PASSWORD)
    for again in ("zoë", "ZOË", "zoe\u0308"):
        with pytest.raises(Conflict):
            await accounts.add(again, PASSWORD)
    with pytest.raises(Conflict):
        await accounts.add("local", PASSWORD)


async def test_a_full_disk_keeps_nobody_out(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await accounts.add("ada", PASSWORD, role="admin")
    entry = await accounts.log_in("ada", PASSWORD, **WHERE)
    with acting_as(Person(user.id, "admin", "session")):
        secret, _ = await accounts.create_key("script")
    long_ago = entry.session.seen_at - timedelta(hours=1)
    async with accounts.credentials._database.write() as db:
        await db.execute(update(sessions).values(seen_at=long_ago))

    @asynccontextmanager
    async def full(kind: str = "durable") -> AsyncIterator[None]:
        raise StoreError("There is no room left on the disk.")
        yield

    monkeypatch.setattr(accounts.credentials._database, "write", full)
    assert await accounts.of_session(entry.token) is not None
    assert await accounts.of_key(secret) is not None


async def test_the_only_admin_stays_one(accounts: Accounts) -> None:
    ada = await accounts.add("ada", PASSWORD, role="admin")
    ben = await accounts.add("ben", PASSWORD, role="admin")
    await accounts.people.change(ben.id, disabled=True)
    for change in ({"disabled": True}, {"role": "member"}):
        with pytest.raises(Conflict, match="only admin"):
            await accounts.people.change(ada.id, **change)
    await accounts.people.change(ben.id, disabled=False)
    assert (await accounts.people.change(ada.id, role="member")).role == "member"


async def test_an_invitation_makes_one_account_even_if_two_come_at_once(accounts: Accounts) -> None:
    token, _ = await accounts.invite(role="admin", note="for Grace")
    both = await asyncio.gather(
        accounts.accept(token, "grace", PASSWORD),
        accounts.accept(token, "mallory", PASSWORD),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in both) == ["NotFound", "User"]
    assert [user.role for user in await accounts.people.list()] == ["admin"]
    with pytest.raises(NotFound):
        await accounts.invited(token)


async def test_an_invitation_survives_a_name_that_is_taken_and_ends_with_its_time(accounts: Accounts) -> None:
    await accounts.add("grace", PASSWORD)
    token, invite = await accounts.invite()
    with pytest.raises(Conflict):
        await accounts.accept(token, "grace", PASSWORD)
    assert [one.id for one in await accounts.people.invites()] == [invite.id]
    late, _ = await accounts.invite(lasting=timedelta(seconds=-1))
    with pytest.raises(NotFound):
        await accounts.accept(late, "late", PASSWORD)
    await accounts.people.withdraw(invite.id)
    with pytest.raises(NotFound):
        await accounts.accept(token, "heidi", PASSWORD)


async def test_a_key_acts_for_its_user_within_its_scopes_until_it_is_revoked(accounts: Accounts) -> None:
    user = await accounts.add("ada", PASSWORD, role="admin")
    with acting_as(Person(user.id, "admin", "session")):
        secret, key = await accounts.create_key("script", scopes=["chat", "admin"])
        assert await accounts.of_key(secret) == Person(
            user.id, "admin", "key", frozenset({"chat", "admin"}), key.id
        )
        assert [one.used_at is not None for one in await accounts.keys()] == [True]
        await accounts.revoke(key.id)
    assert await accounts.of_key(secret) is None
    assert await accounts.of_key("rally_nonsense") is None
    assert await accounts.of_key("") is None


async def test_when_a_key_was_used_is_written_at_most_once_a_minute(accounts: Accounts) -> None:
    secret, key = await accounts.create_key("script")
    await accounts.of_key(secret)
    (first,) = await accounts.keys()
    await accounts.of_key(secret)
    assert await accounts.keys() == [first]
    async with accounts.credentials._database.write() as db:
        assert first.used_at is not None
        earlier = first.used_at - timedelta(minutes=2)
        await db.execute(update(api_keys).where(api_keys.c.id == key.id).values(used_at=earlier))
    await accounts.of_key(secret)
    used = (await accounts.keys())[0].used_at
    assert used is not None
    assert used >= first.used_at


async def test_a_key_is_of_no_use_when_it_has_expired_or_its_user_is_disabled(accounts: Accounts) -> None:
    user = await accounts.add("ben", PASSWORD)
    old, _ = await accounts.create_key("old", lasting=timedelta(seconds=-1), user_id=user.id)
    good, _ = await accounts.create_key("good", user_id=user.id)
    assert await accounts.of_key(old) is None
    assert await accounts.of_key(good) is not None
    await accounts.people.change(user.id, disabled=True)
    assert await accounts.of_key(good) is None


async def test_nobody_makes_a_key_that_opens_more_than_they_may(accounts: Accounts) -> None:
    ben = await accounts.add("ben", PASSWORD)
    with acting_as(Person(ben.id, via="session")):
        with pytest.raises(Forbidden):
            await accounts.create_key("k", scopes=["admin"])
        with pytest.raises(Forbidden):
            await accounts.create_key("k", user_id="local")
        with pytest.raises(InvalidRequest):
            await accounts.create_key("k", scopes=["everything"])
        with pytest.raises(InvalidRequest):
            await accounts.create_key("k", scopes=[])
        _, key = await accounts.create_key("k")
    with acting_as(Person(ben.id, via="key", scopes=frozenset(SCOPES))), pytest.raises(Forbidden):
        await accounts.create_key("another")
    with acting_as("user_other"), pytest.raises(NotFound):
        await accounts.revoke(key.id)


async def test_a_demoted_admin_s_key_opens_what_a_member_s_does(accounts: Accounts) -> None:
    ada = await accounts.add("ada", PASSWORD, role="admin")
    await accounts.add("ben", PASSWORD, role="admin")
    secret, _ = await accounts.create_key("k", scopes=["admin"], user_id=ada.id)
    await accounts.people.change(ada.id, role="member")
    person = await accounts.of_key(secret)
    assert person is not None
    with acting_as(person), pytest.raises(Forbidden):
        await accounts.invite()


async def test_changes_are_noted_with_who_made_them_and_without_secrets(accounts: Accounts) -> None:
    ada = await accounts.add("ada", PASSWORD, role="admin")
    with acting_as(Person(ada.id, "admin", "session")):
        ben = await accounts.add("ben", PASSWORD)
        await accounts.people.change(ben.id, limits=Limits(concurrent=2))
        await accounts.set_password(ben, "another password")
        await accounts.people.change(ben.id, disabled=True)
        _, key = await accounts.create_key("k")
        await accounts.revoke(key.id)
        _, invite = await accounts.invite()
        await accounts.people.withdraw(invite.id)
    noted = [(deed.actor_name, deed.action, deed.target) for deed in reversed(await accounts.deeds.list())]
    assert noted == [
        ("command line", "user.add", "ada"),
        ("ada", "user.add", "ben"),
        ("ada", "user.change", "ben"),
        ("ada", "user.password", "ben"),
        ("ada", "user.change", "ben"),
        ("ada", "key.add", key.id),
        ("ada", "key.revoke", key.id),
        ("ada", "invite.add", invite.id),
        ("ada", "invite.withdraw", invite.id),
    ]
    assert "password" not in str([deed.detail for deed in await accounts.deeds.list()])
    newest = (await accounts.deeds.list(limit=1))[0]
    assert len(await accounts.deeds.list(before=newest.id)) == len(noted) - 1


async def test_the_audit_log_calls_keys_and_invitations_by_their_names(accounts: Accounts) -> None:
    ada = await accounts.add("ada", PASSWORD, role="admin")
    ben = await accounts.add("ben", PASSWORD)
    _, key = await accounts.create_key("ci", user_id=ben.id)
    _, local = await accounts.create_key("cron")
    await accounts.invite(role="admin", note="Grace")
    _, withdrawn = await accounts.invite(note="Edsger")
    await accounts.people.withdraw(withdrawn.id)
    named = [(deed.action, deed.target_name) for deed in reversed(await accounts.deeds.list())]
    assert named == [
        ("user.add", "ada"),
        ("user.add", "ben"),
        ("key.add", f"ci ({key.prefix}…) of ben"),
        ("key.add", f"cron ({local.prefix}…) of local"),
        ("invite.add", "Grace, as admin"),
        ("invite.add", "somebody, as member"),
        ("invite.withdraw", "somebody, as member"),
    ]
    with acting_as(Person(ada.id, "admin", "session")):
        await accounts.erase(ben.id)
    named = [(deed.action, deed.target_name) for deed in await accounts.deeds.list()]
    assert ("key.add", f"{key.prefix}…") in named


async def test_limits_are_kept_and_taken_back(accounts: Accounts) -> None:
    ben = await accounts.add("ben", PASSWORD)
    assert (await accounts.people.change(ben.id, limits=Limits(2, 60))).limits == Limits(2, 60)
    assert (await accounts.people.get(ben.id)).limits == Limits(2, 60)
    assert (await accounts.people.change(ben.id, limits=Limits())).limits == Limits()


async def test_what_was_written_without_login_can_be_given_to_somebody(
    accounts: Accounts, tmp_path: Path
) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        with acting_as(LOCAL):
            mine = await store.create(title="before")
        ada = await accounts.add("ada", PASSWORD, role="admin")
        await accounts.people.adopt(ada.id)
        assert await store.list() == []
        with acting_as(ada.id):
            assert [one.id for one in await store.list()] == [mine.id]


# --- guessing -----------------------------------------------------------------------------------------------


async def test_guessing_at_one_account_is_stopped_before_the_password_is_looked_at(
    accounts: Accounts,
) -> None:
    await accounts.add("ada", PASSWORD)
    tries = [accounts.log_in("ada", f"guess number {n}", **WHERE) for n in range(20)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    kinds = [type(one) for one in outcomes]
    assert kinds.count(LoginFailed) == FREE["pair"]
    assert kinds.count(TooManyTries) == 20 - FREE["pair"]
    with pytest.raises(TooManyTries):
        await accounts.log_in("ada", PASSWORD, **WHERE)
    await accounts.log_in("ada", PASSWORD, device="", address="192.0.2.2")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/users/%00", None),
        ("GET", "/v1/audit?after=%00", None),
        ("GET", "/v1/files?purpose=%00", None),
        ("GET", "/v1/conversations?folder=%00", None),
        ("DELETE", "/v1/me/sessions/%00", None),
        ("POST", "/v1/invites", {"note": "a\0b"}),
        ("POST", "/v1/users", {"name": "zoe", "password": PASSWORD, "email": "a\0@b"}),
    ],
)
async def test_a_nul_character_is_no_failure_of_the_database(
    method: str, path: str, body: object, tmp_path: Path
) -> None:
    """PostgreSQL takes none in a text; SQLite does."""
    async with people(tmp_path) as world:
        answer = await world.ask(method, path, as_="ada", **({"json": body} if body else {}))
        assert answer.status_code < 500, answer.text


async def test_only_who_sits_at_the_machine_talks_to_a_file_that_a_conversation_names(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(gguf_bytes())
    async with people(tmp_path) as world:
        there = (await world.service.store.create(model=str(file))).model
        assert world.service.talked_to(there).id == str(file)
        for user in world.users.values():
            with acting_as(Person(user.id, user.role, "session")), pytest.raises(NotFound):
                world.service.talked_to(there)
