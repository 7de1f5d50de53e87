"""Behind a reverse proxy: who asks, and over https or not, is what a proxy says that is believed, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from rallychat.accounts.throttle import FREE
from rallychat.api import create_app
from rallychat.api.gate import COOKIE
from rallychat.chat import ChatService
from rallychat.errors import SettingsError
from rallychat.settings import Settings
from rallychat.ui import login_routes
from rallychat.ui.login_routes import AWAY
from tests.accounts_world import PASSWORD, cheap_passwords
from tests.api_world import settings
from tests.openid_server import CLIENT, SECRET, openid

__all__ = ["cheap_passwords"]

NAME = "chat.example"
ELSEWHERE = "203.0.113.9"
HOME = "198.51.100.7"


@asynccontextmanager
async def behind(folder: Path, *, at: str = "127.0.0.1", **given: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A server with its login, reached by its proxy's address; ada has an account."""
    given = {"auth": "required", "allowed_hosts": (NAME,)} | given
    async with ChatService.open(settings(folder, **given)) as service:
        await service.accounts.add("ada", PASSWORD, role="admin")
        app = create_app(service, service.settings)
        app.include_router(login_routes.router(service))
        transport = httpx.ASGITransport(app, client=(at, 50000))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{NAME}", timeout=60) as http:
            yield http


async def login(http: httpx.AsyncClient, name: str, password: str, **headers: str) -> int:
    sent = {header.replace("_", "-"): value for header, value in headers.items()}
    return (await http.post("/login", data={"name": name, "password": password}, headers=sent)).status_code


async def guesses(http: httpx.AsyncClient, **headers: str) -> set[int]:
    """One address fails at one account after the other, until it would have to wait."""
    return {await login(http, f"u{n}", "wrong", **headers) for n in range(FREE["address"] + 2)}


@pytest.mark.parametrize(("believed", "scheme"), [(("127.0.0.1",), "https"), (("10.0.0.1",), "http")])
async def test_a_login_through_a_provider_comes_back_over_https_if_a_proxy_that_is_believed_says_so(
    tmp_path: Path, believed: tuple[str, ...], scheme: str
) -> None:
    given: dict[str, Any] = {
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SECRET,
        "trusted_proxies": believed,
    }
    says = {"x-forwarded-proto": "https"}
    with openid() as provider:
        async with behind(tmp_path, oidc_issuer=provider.url, **given) as http:
            sent = await http.get("/login/oidc", headers=says)
            query = {k: v[0] for k, v in parse_qs(urlsplit(sent.headers["location"]).query).items()}
            assert query["redirect_uri"] == f"{scheme}://{NAME}/login/oidc/callback"
            away = SimpleCookie(sent.headers["set-cookie"])[AWAY]
            back = urlsplit(provider.authorize(query))
            headers = {**says, "cookie": f"{AWAY}={away.coded_value}"}
            entered = await http.get(f"{back.path}?{back.query}", headers=headers)
            assert entered.status_code == 303, entered.text
            [cookie] = [each for each in entered.headers.get_list("set-cookie") if each.startswith(COOKIE)]
            session = SimpleCookie(cookie)[COOKIE]
            assert [bool(each["secure"]) for each in (away, session)] == [scheme == "https"] * 2


async def test_who_guesses_behind_a_proxy_keeps_nobody_else_out(tmp_path: Path) -> None:
    async with behind(tmp_path) as http:
        assert await guesses(http, x_forwarded_for=ELSEWHERE) == {401, 429}
        assert await login(http, "ada", PASSWORD, x_forwarded_for=HOME) == 303


async def test_an_address_that_a_client_made_up_is_not_counted_in_place_of_its_own(tmp_path: Path) -> None:
    async with behind(tmp_path) as http:
        said = [
            await login(http, f"u{n}", "wrong", x_forwarded_for=f"192.0.2.{n}, {ELSEWHERE}")
            for n in range(22)
        ]
        assert said[-1] == 429


async def test_a_proxy_that_says_nothing_of_its_clients_keeps_nobody_out(tmp_path: Path) -> None:
    async with behind(tmp_path) as http:
        assert await guesses(http) == {401}
        assert await login(http, "ada", PASSWORD) == 303


async def test_guessing_at_one_account_waits_also_where_nobody_is_known(tmp_path: Path) -> None:
    async with behind(tmp_path) as http:
        said = [await login(http, "ada", "wrong") for _ in range(FREE["account"] + 1)]
        assert (set(said[:-1]), said[-1]) == ({401}, 429)


async def test_who_is_not_a_proxy_is_not_believed_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with behind(tmp_path, at=ELSEWHERE) as http:
        with caplog.at_level(logging.WARNING):
            said = [await login(http, f"u{n}", "wrong", x_forwarded_for=f"192.0.2.{n}") for n in range(22)]
        assert said[-1] == 429
    assert f"X-Forwarded-For of {ELSEWHERE} is not believed" in caplog.text


@pytest.mark.parametrize("at", ["172.18.0.3", "::ffff:172.18.0.3", "fd00::3"])
async def test_a_network_of_proxies_is_believed_however_its_addresses_are_written(
    tmp_path: Path, at: str
) -> None:
    async with behind(tmp_path, at=at, trusted_proxies=("172.18.0.1/16", "fd00::/8")) as http:
        assert await guesses(http, x_forwarded_for=ELSEWHERE) == {401, 429}
        assert await login(http, "ada", PASSWORD, x_forwarded_for=HOME) == 303


@pytest.mark.parametrize("wrong", ["*", "proxy", "10.0.0.0/99", "0.0.0.0/0", "::/0"])
def test_a_proxy_that_is_no_address_or_is_everybody_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        Settings.load(data_dir=tmp_path, trusted_proxies=(wrong,))
