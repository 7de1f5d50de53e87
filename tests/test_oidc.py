"""Login through an OpenID provider, which is a real one but for its size; and everything that is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey

from rallychat.accounts.oidc import Provider
from rallychat.api.gate import COOKIE
from rallychat.errors import SettingsError
from rallychat.settings import Settings
from rallychat.ui.login_routes import AWAY
from tests.accounts_world import PASSWORD, World, cheap_passwords, people
from tests.openid_server import CLIENT, SECRET, OpenId, openid

__all__ = ["cheap_passwords"]


@dataclass
class Met:
    """A server and its provider."""

    world: World
    provider: OpenId

    async def away(self, following: str = "/") -> tuple[str, dict[str, str]]:
        """Where the provider sends the browser back to, and the cookie it has then."""
        sent = await self.world.ask("GET", "/login/oidc", params={"next": following})
        assert sent.status_code == 303, sent.text
        cookie = SimpleCookie(sent.headers["set-cookie"])[AWAY]
        assert (cookie["httponly"], cookie["samesite"]) == (True, "lax")
        query = parse_qs(urlsplit(sent.headers["location"]).query)
        back = self.provider.authorize({name: values[0] for name, values in query.items()})
        return back.removeprefix("http://127.0.0.1:7860"), {
            "cookie": sent.headers["set-cookie"].partition(";")[0]
        }

    async def back(self, path: str, headers: dict[str, str]) -> httpx.Response:
        return await self.world.ask("GET", path, headers=headers)

    async def log_in(self, following: str = "/") -> httpx.Response:
        return await self.back(*await self.away(following))

    async def me(self, answer: httpx.Response) -> dict[str, Any]:
        """Who is logged in by this answer."""
        self.world.tokens["new"] = SimpleCookie(answer.headers.get("set-cookie", ""))[COOKIE].value
        found: dict[str, Any] = (await self.world.ask("GET", "/v1/me", as_="new")).json()
        return found


@asynccontextmanager
async def met(folder: Path, **given: Any) -> AsyncIterator[Met]:
    with openid() as provider:
        given = {"oidc_client_id": CLIENT, "oidc_client_secret": SECRET} | given
        async with people(folder, mount="login", oidc_issuer=provider.url, **given) as world:
            yield Met(world, provider)


async def test_whom_the_provider_lets_in_gets_an_account_and_it_is_the_same_the_next_time(
    tmp_path: Path,
) -> None:
    async with met(tmp_path, oidc_name="Example") as here:
        assert "Log in with Example" in (await here.world.ask("GET", "/login")).text
        first = await here.log_in("/account")
        assert (first.status_code, first.headers["location"]) == (303, "/account")
        me = await here.me(first)
        assert (me["name"], me["role"], me["user"]["email"]) == (
            "grace-hopper",
            "member",
            "grace@example.com",
        )
        assert me["user"]["has_password"] is False
        here.provider.person |= {"preferred_username": "renamed", "email": "other@example.com"}
        assert (await here.me(await here.log_in()))["id"] == me["id"]


async def test_an_account_of_the_same_name_is_somebody_else_s(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        here.provider.person |= {"preferred_username": "ada", "email": "ada@example.com"}
        me = await here.me(await here.log_in())
        assert (me["name"], me["role"]) == ("ada-2", "member")
        assert me["id"] != here.world.users["ada"].id
        here.provider.person |= {"sub": "another", "preferred_username": "LOCAL"}
        assert (await here.me(await here.log_in()))["name"] == "somebody"


async def test_the_provider_says_who_is_an_admin_if_it_is_asked_to(tmp_path: Path) -> None:
    async with met(tmp_path, oidc_admin="groups=chat-admins") as here:
        for groups, role in (
            (["chat-admins", "x"], "admin"),
            (["x"], "member"),
            ("chat-admins", "admin"),
            (None, "member"),
        ):
            here.provider.claims = {"groups": groups}
            assert (await here.me(await here.log_in()))["role"] == role


@pytest.mark.parametrize(
    ("person", "let_in"),
    [
        ({}, True),
        ({"email": "grace@EXAMPLE.com"}, True),
        ({"email": "grace@example.com.evil.org"}, False),
        ({"email": "grace@sub.example.com"}, False),
        ({"email_verified": False}, False),
        ({"email_verified": "true"}, False),
        ({"email": None}, False),
    ],
)
async def test_only_verified_addresses_of_the_domains_named_are_let_in(
    person: dict[str, Any], let_in: bool, tmp_path: Path
) -> None:
    async with met(tmp_path, oidc_domains=("example.com",)) as here:
        here.provider.person |= person
        answer = await here.log_in()
        assert (answer.status_code, COOKIE in answer.headers["set-cookie"]) == (
            (303, True) if let_in else (401, False)
        )


async def test_a_disabled_account_is_not_let_in(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        me = await here.me(await here.log_in())
        await here.world.service.accounts.people.change(me["id"], disabled=True)
        answer = await here.log_in()
        assert (answer.status_code, "disabled" in answer.text) == (401, True)


LIES: dict[str, Any] = {
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "another audience": {"claims": {"aud": "another"}},
    "another party": {"claims": {"azp": "another"}},
    "another nonce": {"claims": {"nonce": "replayed"}},
    "no nonce": {"claims": {"nonce": None}},
    "expired": {"claims": {"exp": 1_000_000}},
    "no expiry": {"claims": {"exp": None}},
    "issued tomorrow": {"claims": {"iat": 9_999_999_999}},
    "no subject": {"person": {"email": "x@example.com"}},
    "an empty subject": {"claims": {"sub": ""}},
    "another key": {"signs_with": RSAKey.generate_key(2048, {"kid": "one"})},
    "no signature": {"header": {"alg": "none"}},
    "the public key as a secret": {"header": {"alg": "HS256"}},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_token_that_lies_lets_nobody_in(lie: str, tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        for name, value in LIES[lie].items():
            setattr(here.provider, name, value)
        answer = await here.log_in()
        assert (answer.status_code, COOKIE in answer.headers.get("set-cookie", "")) == (401, False)
        assert "not good" in answer.text or "not for this server" in answer.text


async def test_a_provider_that_breaks_off_lets_nobody_in(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        here.provider.header = {"alg": "unheard of"}  # its handler fails, and closes the connection
        assert (await here.log_in()).status_code == 401


async def test_a_provider_that_has_changed_its_keys_is_asked_again(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        assert (await here.log_in()).status_code == 303
        assert (await here.log_in()).status_code == 303
        assert here.provider.key_set_asked == 1
        here.provider.key = RSAKey.generate_key(2048, {"kid": "two"})
        here.provider.header = {"kid": "two"}
        assert (await here.log_in()).status_code == 303
        assert here.provider.key_set_asked == 2


async def test_a_login_that_was_not_begun_in_this_browser_is_refused(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        path, cookie = await here.away()
        other = (await here.away())[1]
        for headers in ({}, other, {"cookie": f"{AWAY}=state=&nonce=&verifier="}):
            answer = await here.back(path, headers)
            assert (answer.status_code, "not begun here" in answer.text) == (401, True)
        answer = await here.back(path, cookie)
        assert answer.status_code == 303
        assert SimpleCookie(answer.headers.get_list("set-cookie")[-1])[AWAY]["max-age"] == "0"
        assert (await here.back(path, cookie)).status_code == 401  # its code is good once


async def test_who_is_not_let_in_by_the_provider_is_told_so(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        here.provider.refuses = "access_denied"
        answer = await here.log_in()
        assert (answer.status_code, "did not let you in" in answer.text) == (401, True)


async def test_a_provider_that_is_not_the_one_named_or_not_there_is_said(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        here.provider.calls_itself = "https://evil.example"
        assert "calls itself otherwise" in (await here.world.ask("GET", "/login/oidc")).text
    async with people(
        tmp_path / "x", mount="login", oidc_issuer="http://127.0.0.1:9", oidc_client_id="x"
    ) as world:
        assert "cannot be reached" in (await world.ask("GET", "/login/oidc")).text


async def test_a_login_through_the_provider_leads_nowhere_but_here(tmp_path: Path) -> None:
    async with met(tmp_path) as here:
        assert (await here.log_in("//evil.example")).headers["location"] == "/"


async def test_without_a_provider_its_routes_lead_to_the_login(tmp_path: Path) -> None:
    async with people(tmp_path, mount="login") as world:
        for path in ("/login/oidc", "/login/oidc/callback?code=x&state=y"):
            assert (await world.ask("GET", path)).headers["location"] == "/login"
        data = {"name": "ada", "password": PASSWORD}
        assert (await world.ask("POST", "/login", data=data)).status_code == 303


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"oidc_issuer": "http://id.example", "oidc_client_id": "x"}, "https"),
        ({"oidc_issuer": "id.example", "oidc_client_id": "x"}, "https"),
        ({"oidc_issuer": "https://id.example"}, "oidc_client_id"),
        ({"oidc_issuer": "https://id.example", "oidc_client_id": "x", "oidc_admin": "groups"}, "CLAIM=VALUE"),
    ],
)
def test_a_provider_that_is_half_described_is_refused_at_the_start(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Provider(Settings(**given))
