"""Login, invitations, account and people, as a browser sees them; and that no secret gets into a log."""

from __future__ import annotations

import logging
import re
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.api.gate import COOKIE
from rallychat.identity import acting_as
from rallychat.ui.fragments import browser
from tests.accounts_world import PASSWORD, World, cheap_passwords, people

__all__ = ["cheap_passwords"]


async def log_in(world: World, name: str = "ada", password: str = PASSWORD, **more: str) -> httpx.Response:
    return await world.ask("POST", "/login", data={"name": name, "password": password, **more})


def cookie_of(answer: httpx.Response) -> SimpleCookie:
    return SimpleCookie(answer.headers.get("set-cookie", ""))


async def test_a_login_gives_a_cookie_no_script_sees_and_no_other_site_sends(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        assert "Log in" in (await world.ask("GET", "/login")).text
        answer = await log_in(world, next="/?model=echo")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?model=echo")
        cookie = cookie_of(answer)[COOKIE]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (
            True,
            "lax",
            "/",
            "",
        )
        world.tokens["new"] = cookie.value
        assert (await world.ask("GET", "/v1/me", as_="new")).json()["name"] == "ada"
        assert (await world.ask("GET", "/login?next=/account", as_="new")).headers["location"] == "/account"


async def test_over_https_the_cookie_is_for_https_alone(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True, allowed_hosts=("chat.example",)) as world:
        headers = {"host": "chat.example", "origin": "https://chat.example"}
        answer = await world.ask(
            "POST", "/login", data={"name": "ada", "password": PASSWORD}, headers=headers
        )
        assert cookie_of(answer)[COOKIE]["secure"] is True


@pytest.mark.parametrize(
    "away",
    [
        "https://evil.example/",
        "//evil.example",
        "//[evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "evil",
        "/a\nb",
        "",
    ],
)
async def test_a_login_leads_nowhere_but_here(away: str, tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        assert (await log_in(world, next=away)).headers["location"] == "/"
        assert (await world.ask("GET", "/login", params={"next": away}, as_="ada")).headers["location"] == "/"


async def test_a_wrong_password_is_said_without_a_cookie_and_the_next_ones_wait(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        statuses = [(await log_in(world, password=f"wrong {n}")).status_code for n in range(6)]
        assert statuses == [401, 401, 401, 401, 401, 429]
        answer = await log_in(world)
        assert (answer.status_code, "set-cookie" in answer.headers) == (429, False)
        assert "too many failed logins" in answer.text
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_session_that_was_there_before_a_login_ends_with_it(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        answer = await world.ask("POST", "/login", as_="eve", data={"name": "ada", "password": PASSWORD})
        assert cookie_of(answer)[COOKIE].value != world.tokens["eve"]
        assert (await world.ask("GET", "/v1/me", as_="eve")).status_code == 401


async def test_logging_out_ends_the_session_and_takes_the_cookie_back(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        answer = await world.ask("POST", "/logout", as_="ben")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert cookie_of(answer)[COOKIE]["max-age"] == "0"
        assert (await world.ask("GET", "/v1/me", as_="ben")).status_code == 401


FORMS = ["/batches", "/login", "/logout", "/account/password", "/account/keys", "/people/invites"]
FOREIGN = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_forms_of_other_sites_are_refused(headers: dict[str, str], tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        for path in FORMS:
            answer = await world.ask("POST", path, as_="ada", headers=headers, data={"name": "ada"})
            assert answer.status_code == 403, path
        assert (await world.ask("GET", "/v1/me", as_="ada")).status_code == 200


BEHIND = {"host": "chat.example", "origin": "https://chat.example:8443"}
"""What a proxy on a port of its own sends on that keeps the name and drops the port."""


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        (BEHIND | {"sec-fetch-site": "same-origin"}, True),
        (BEHIND | {"host": "chat.example:8443"}, True),
        (BEHIND, False),
        (BEHIND | {"sec-fetch-site": "none"}, False),
        (BEHIND | {"sec-fetch-site": "same-site"}, False),
        (BEHIND | {"sec-fetch-site": "cross-site"}, False),
        ({"host": "chat.example", "sec-fetch-site": "cross-site"}, False),
        (BEHIND | {"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, False),
        (BEHIND | {"origin": "null", "sec-fetch-site": "same-origin"}, False),
        (BEHIND | {"host": "evil.example", "sec-fetch-site": "same-origin"}, False),
    ],
)
async def test_behind_a_proxy_on_another_port_only_the_page_itself_changes_anything(
    tmp_path: Path, headers: dict[str, str], good: bool
) -> None:
    async with people(tmp_path, mount=True, allowed_hosts=("chat.example",)) as world:
        form = {"name": "ada", "password": PASSWORD}
        answer = await world.ask("POST", "/login", data=form, headers=headers)
        assert answer.status_code == (303 if good else 403)
        said = await world.ask("POST", "/ui/turns", as_="ben", json={"text": "hello"}, headers=headers)
        assert said.status_code == (200 if good else 403)
        with acting_as(world.users["ben"].id):
            assert len(await world.service.store.list()) == good


@pytest.mark.parametrize("path", ["/login", "/account", "/people", "/invite/unknown"])
async def test_these_pages_are_neither_kept_nor_framed_and_run_no_script_of_others(
    path: str, tmp_path: Path
) -> None:
    async with people(tmp_path, mount=True) as world:
        headers = (await world.ask("GET", path, as_=None if path == "/login" else "ada")).headers
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        for rule in (
            "default-src 'none'",
            "script-src 'self';",
            "frame-ancestors 'none'",
            "form-action 'self'",
        ):
            assert rule in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


async def test_an_invitation_makes_an_account_and_leads_in(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        made = await world.ask("POST", "/people/invites", as_="ada", data={"role": "member", "note": "Grace"})
        link = re.search(r"http://[^<\s]*/invite/[\w-]+", made.text)
        assert link is not None
        assert "Grace, as member" in made.text.partition("What was done")[2]
        path = link[0].removeprefix("http://127.0.0.1:7860")
        assert "You are invited" in (await world.ask("GET", path)).text
        form = {"name": "Grace", "password": "a long password", "again": "another one"}
        assert "The two passwords differ." in (await world.ask("POST", path, data=form)).text
        form["again"] = form["password"]
        assert "already" in (await world.ask("POST", path, data=form | {"name": "ada"})).text
        answer = await world.ask("POST", path, data=form)
        world.tokens["grace"] = cookie_of(answer)[COOKIE].value
        assert (await world.ask("GET", "/v1/me", as_="grace")).json()["role"] == "member"
        assert (await world.ask("GET", path)).status_code == 404
        assert (await world.ask("POST", path, data=form | {"name": "mallory"})).status_code == 404


async def test_one_s_password_sessions_and_keys_are_changed_on_one_page(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        other = cookie_of(await log_in(world, "ben"))[COOKIE].value
        page = (await world.ask("GET", "/account", as_="ben")).text
        assert page.count("Log out there") == 1
        new = {"old": PASSWORD, "new": "a new password", "again": "a new password"}
        assert (
            "differ"
            in (await world.ask("POST", "/account/password", as_="ben", data=new | {"again": "x"})).text
        )
        assert (
            await world.ask("POST", "/account/password", as_="ben", data=new | {"old": "x"})
        ).status_code == 401
        assert "is changed" in (await world.ask("POST", "/account/password", as_="ben", data=new)).text
        world.tokens["other"] = other
        assert (await world.ask("GET", "/v1/me", as_="other")).status_code == 401
        made = await world.ask(
            "POST", "/account/keys", as_="ben", data={"name": "<b>", "scopes": ["chat"], "days": "9"}
        )
        secret = re.search(r"rally_[\w-]{43}", made.text)
        assert secret is not None
        assert "<b>" not in made.text
        headers = {"authorization": f"Bearer {secret[0]}"}
        assert (await world.ask("GET", "/v1/me", headers=headers)).json()["scopes"] == ["chat"]
        key = re.search(r"/account/keys/(key_\w+)/revoke", made.text)
        assert key is not None
        assert (await world.ask("POST", key[0], as_="ben")).status_code == 303
        assert (await world.ask("GET", "/v1/me", headers=headers)).status_code == 401
        wrong: dict[str, Any]
        for wrong in (
            {"days": "x"},
            {"days": "0"},
            {"days": "0036599999999"},
            {"scopes": []},
            {"scopes": ["admin"]},
            {"name": ""},
        ):
            data = {"name": "k", "scopes": ["chat"]} | wrong
            assert (await world.ask("POST", "/account/keys", as_="ben", data=data)).status_code in (400, 403)


async def test_an_admin_keeps_people_out_and_lets_them_in_again_on_the_page(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        eve = f"/people/users/{world.users['eve'].id}"
        assert (await world.ask("POST", eve, as_="ada", data={"what": "disable"})).status_code == 303
        assert (await world.ask("GET", "/v1/me", as_="eve")).status_code == 401
        assert "Let in again" in (await world.ask("GET", "/people", as_="ada")).text
        await world.ask("POST", eve, as_="ada", data={"what": "enable"})
        assert (await log_in(world, "eve")).status_code == 303
        ada = f"/people/users/{world.users['ada'].id}"
        answer = await world.ask("POST", ada, as_="ada", data={"what": "member"})
        assert (answer.status_code, "only admin" in answer.text) == (409, True)
        assert (await world.ask("POST", ada, as_="ada", data={"what": "x"})).status_code == 400


async def test_an_admin_sets_limits_and_passwords_on_the_page(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        eve = f"/people/users/{world.users['eve'].id}"
        set_ = await world.ask(
            "POST", f"{eve}/limits", as_="ada", data={"concurrent": "2", "stored_bytes": " "}
        )
        assert set_.status_code == 303
        shown = (await world.ask("GET", "/people", as_="ada")).text
        assert "concurrent 2" in shown
        wrong = await world.ask("POST", f"{eve}/limits", as_="ada", data={"concurrent": "many"})
        assert (wrong.status_code, "whole number" in wrong.text) == (400, True)
        await world.ask("POST", f"{eve}/limits", as_="ada", data={"concurrent": ""})
        assert "concurrent 2" not in (await world.ask("GET", "/people", as_="ada")).text
        short = await world.ask("POST", f"{eve}/password", as_="ada", data={"new": "short"})
        assert short.status_code == 400
        new = "another battery staple"
        assert (await world.ask("POST", f"{eve}/password", as_="ada", data={"new": new})).status_code == 303
        assert (await world.ask("GET", "/v1/me", as_="eve")).status_code == 401
        assert (await log_in(world, "eve", new)).status_code == 303
        for what in ("limits", "password"):
            assert (await world.ask("POST", f"{eve}/{what}", as_="ben", data={"new": new})).status_code == 403


async def test_members_choose_models_and_admins_keep_them(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        for path in ("unload", "remove", "download", "bring"):
            body = {"name": "echo"} if path == "bring" else {"model": "echo"}
            assert (await world.ask("POST", f"/ui/models/{path}", as_="ben", json=body)).status_code in (
                403,
                409,
            )
        load = {"model": "smollm2-135m-instruct"}
        assert (await world.ask("POST", "/ui/models/load", as_="ben", json=load)).status_code == 403
        asked = {"text": "Fetch it for me", **load}
        assert (await world.ask("POST", "/ui/turns", as_="ben", json=asked)).status_code == 403
        with acting_as(world.users["ben"].id):
            assert await world.service.store.list() == []
        assert (
            await world.ask("POST", "/ui/models/load", as_="ben", json={"model": "echo"})
        ).status_code == 200
        assert (
            await world.ask("POST", "/ui/models/unload", as_="ada", json={"model": "echo"})
        ).status_code == 200


CANARY = "canary-5b1f9c-secret"


async def test_no_secret_is_in_any_log_however_it_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="rallychat")  # as `log_level = "debug"` has it; others warn only
    async with people(tmp_path, mount=True) as world:
        made = await world.ask("POST", "/v1/me/keys", as_="ada", json={"name": "k"})
        token, _ = await world.service.accounts.invite()
        session = cookie_of(await log_in(world))[COOKIE].value
        secrets = [CANARY, made.json()["secret"], token, session, PASSWORD]
        bearer = {"authorization": f"Bearer {CANARY}", "cookie": f"{COOKIE}={CANARY}"}
        refused = [
            await log_in(world, password=CANARY),
            await log_in(world, name=CANARY, password=CANARY),
            await world.ask("POST", "/login", content=f"name=ada&password={CANARY}&\xff".encode()),
            await world.ask("POST", "/login", json={"name": "ada", "password": CANARY}),
            await world.ask("POST", "/login", data={"name": "ada", "password": CANARY * 200}),
            await world.ask("GET", "/v1/models", headers=bearer),
            await world.ask("GET", "/account", headers=bearer),
            await world.ask("GET", f"/invite/{CANARY}"),
            await world.ask("GET", f"/invite/{token}"),
            await world.ask(
                "POST", f"/invite/{token}", data={"name": "ada", "password": PASSWORD, "again": PASSWORD}
            ),
            await world.ask("POST", "/v1/users", as_="ada", json={"name": "a b", "password": CANARY}),
            await world.ask(
                "POST", "/v1/users", as_="ada", json={"name": "x", "password": CANARY, CANARY: 1}
            ),
            await world.ask("POST", "/v1/users", as_="ada", json={"name": "x", "password": [CANARY]}),
            await world.ask("POST", "/v1/me/password", as_="ada", json={"old": CANARY, "new": CANARY}),
        ]

        async def broken(*_: object, **__: object) -> None:
            raise RuntimeError(f"failed with {CANARY} and {PASSWORD}")

        monkeypatch.setattr(world.service.accounts.people, "password", broken)
        refused.append(await log_in(world, name="eve", password=CANARY))
        assert refused[-1].status_code == 500
    assert [answer.status_code for answer in refused if answer.status_code < 300] == [
        200
    ]  # the invitation's page
    told = [(one.name, one.getMessage(), str(one.exc_text)) for one in caplog.records]
    assert any(name == "rallychat.api.request_context" for name, *_ in told)
    assert [line for line in told if any(secret in str(line) for secret in secrets)] == []
    echoed = [answer.text for answer in refused[:6] if CANARY in answer.text.replace(f'value="{CANARY}"', "")]
    assert echoed == []


@pytest.mark.parametrize(
    ("device", "said"),
    [
        (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140 Safari/537.36",
            "Chrome on Linux",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18 Safari/604.1",
            "Safari on iPhone",
        ),
        ("Mozilla/5.0 (Windows NT 10.0) Gecko/20100101 Firefox/140.0", "Firefox on Windows"),
        ("curl/8.5", "curl"),
        ("", "A browser"),
    ],
)
def test_a_browser_is_called_by_two_words(device: str, said: str) -> None:
    assert browser(device) == said


async def test_what_an_admin_does_to_models_is_in_the_audit_log(tmp_path: Path) -> None:
    config = {"part": "answer", "text": "generation_config:\n  top_p: 0.5\n"}
    done = {
        "download": {},
        "unload": {},
        "remove": {},
        "choice": {},
        "choice/yaml": config,
        "choice/reset": {},
    }
    async with people(tmp_path, mount=True) as world:
        for route, more in done.items():
            body = {"model": "echo", **more}
            refused = await world.ask("POST", f"/ui/models/{route}", as_="ben", json=body)
            taken = await world.ask("POST", f"/ui/models/{route}", as_="ada", json=body)
            assert (refused.status_code in (403, 409), taken.status_code) == (True, 200), taken.text
        await world.ask("POST", "/ui/models/bring", as_="ada", json={"name": "echo"})
        audit = (await world.ask("GET", "/v1/audit", as_="ada")).json()["data"]
    deeds = [(deed["action"], deed["target"]) for deed in reversed(audit) if "model." in deed["action"]]
    names = ("download", "unload", "remove", "choose", "choose", "choose", "bring")
    assert deeds == [(f"model.{name}", "echo") for name in names]
