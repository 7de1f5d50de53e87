"""Who comes in: every route of API and page, tried as everybody who should not."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from rallychat import ui
from rallychat.api import create_app
from rallychat.api.gate import COOKIE, token_of
from rallychat.api.request_context import is_ours
from rallychat.api.scopes import is_open, scope_of
from rallychat.chat import ChatService
from rallychat.errors import StoreUnavailable
from rallychat.identity import acting_as
from rallychat.store import Memory
from tests.accounts_world import PASSWORD, World, cheap_passwords, people
from tests.api_world import client, settings

__all__ = ["cheap_passwords"]

Kind = Literal["open", "shared", "owned", "admin", "self"]


@dataclass(frozen=True)
class Case:
    """How a route is tried.

    Args:
        kind: "open": by anybody. "shared": by whoever is known. "owned": what it names is somebody's.
            "admin": by admins. "self": by a person, not by a key.
        body: a good one.
        query, form: good ones.
        file: it wants one beside the form.
        said: the message it names is to be a person's own.
    """

    kind: Kind
    body: dict[str, Any] | None = None
    query: str = ""
    said: bool = False
    form: dict[str, str] | None = None
    file: bool = False


SAID = {"type": "message", "role": "user", "content": "Hi"}
BATCH = {"input_file_id": "{file_id}", "endpoint": "/v1/completions", "completion_window": "24h"}
ROUTES: dict[str, Case] = {
    "POST /v1/chat/completions": Case("shared", {"messages": [{"role": "user", "content": "Hi"}]}),
    "POST /v1/completions": Case("shared", {"prompt": "Hi"}),
    "POST /v1/responses": Case("shared", {"input": "Hi"}),
    "GET /v1/responses/{response_id}": Case("owned"),
    "DELETE /v1/responses/{response_id}": Case("owned"),
    "POST /v1/responses/{response_id}/cancel": Case("owned"),
    "GET /v1/responses/{response_id}/input_items": Case("owned"),
    "POST /v1/conversations": Case("shared", {}),
    "GET /v1/conversations": Case("shared"),
    "GET /v1/conversations/{conversation_id}": Case("owned"),
    "POST /v1/conversations/{conversation_id}": Case("owned", {"metadata": {}}),
    "DELETE /v1/conversations/{conversation_id}": Case("owned"),
    "POST /v1/conversations/{conversation_id}/items": Case("owned", {"items": [SAID]}),
    "GET /v1/conversations/{conversation_id}/items": Case("owned"),
    "GET /v1/conversations/{conversation_id}/context": Case("owned"),
    "PATCH /v1/conversations/{conversation_id}/context": Case("owned", {"strategy": "full"}),
    "POST /v1/conversations/{conversation_id}/memory": Case("owned", {"text": "x"}),
    "POST /v1/conversations/{conversation_id}/memory/undo": Case("owned", {}),
    "POST /v1/conversations/{conversation_id}/memory/restore": Case("owned", {"version": 1}),
    "POST /v1/conversations/{conversation_id}/items/{item_id}/mark": Case(
        "owned", {"mark": "pin"}, said=True
    ),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": Case("owned"),
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": Case("owned"),
    "PATCH /v1/conversations/{conversation_id}": Case("owned", {"pinned": True}),
    "POST /v1/conversations/{conversation_id}/fork": Case("owned", {"message_id": "{message_id}"}),
    "POST /v1/conversations/{conversation_id}/restore": Case("owned"),
    "GET /v1/conversations/{conversation_id}/export": Case("owned"),
    "POST /v1/conversations/{conversation_id}/shares": Case("owned", {}),
    "GET /v1/conversations/{conversation_id}/shares": Case("owned"),
    "DELETE /v1/conversations/{conversation_id}/shares/{share_id}": Case("owned"),
    "GET /v1/conversations/search": Case("shared", query="q=secret"),
    "GET /v1/conversations/folders": Case("shared"),
    "GET /v1/conversations/export": Case("shared"),
    "POST /v1/conversations/import": Case(
        "shared", {"format": "rallychat", "version": 1, "conversations": []}
    ),
    "DELETE /v1/conversations/trash": Case("shared"),
    "GET /v1/personas": Case("shared"),
    "POST /v1/personas": Case("shared", {"name": "p"}),
    "GET /v1/personas/{persona_id}": Case("owned"),
    "POST /v1/personas/{persona_id}": Case("owned", {"name": "q"}),
    "DELETE /v1/personas/{persona_id}": Case("owned"),
    "POST /v1/files": Case("shared", form={"purpose": "batch"}, file=True),
    "GET /v1/files": Case("shared"),
    "GET /v1/files/{file_id}": Case("owned"),
    "GET /v1/files/{file_id}/content": Case("owned"),
    "DELETE /v1/files/{file_id}": Case("owned"),
    "POST /v1/batches": Case("owned", BATCH),
    "GET /v1/batches": Case("shared"),
    "GET /v1/batches/{batch_id}": Case("owned"),
    "POST /v1/batches/{batch_id}/cancel": Case("owned", {}),
    "GET /v1/models": Case("shared"),
    "GET /v1/models/{model_id:path}": Case("shared"),
    "GET /v1/me": Case("shared"),
    "POST /v1/me/password": Case("self", {"old": PASSWORD, "new": "another password"}),
    "GET /v1/me/export": Case("self"),
    "POST /v1/me/erase": Case("self", {"password": PASSWORD}),
    "GET /v1/me/sessions": Case("self"),
    "DELETE /v1/me/sessions/{session_id}": Case("owned"),
    "GET /v1/me/keys": Case("self"),
    "POST /v1/me/keys": Case("self", {"name": "k"}),
    "DELETE /v1/me/keys/{key_id}": Case("owned"),
    "GET /v1/users": Case("admin"),
    "POST /v1/users": Case("admin", {"name": "new", "password": PASSWORD}),
    "GET /v1/users/{user_id}": Case("admin"),
    "POST /v1/users/{user_id}": Case("admin", {"email": "x@example.com"}),
    "DELETE /v1/users/{user_id}": Case("admin"),
    "POST /v1/users/{user_id}/password": Case("admin", {"password": "another password"}),
    "POST /v1/users/{user_id}/keys": Case("admin", {"name": "k"}),
    "GET /v1/invites": Case("admin"),
    "POST /v1/invites": Case("admin", {}),
    "DELETE /v1/invites/{invite_id}": Case("admin"),
    "GET /v1/keys": Case("admin"),
    "DELETE /v1/keys/{key_id}": Case("admin"),
    "GET /v1/audit": Case("admin"),
    "GET /healthz": Case("open"),
    "GET /readyz": Case("open"),
    "GET /metrics": Case("admin"),
    # --- the page's own ---
    "GET /share/{token}": Case("open"),
    "GET /ui/found": Case("shared", query="q=secret"),
    "GET /ui/folder": Case("owned", query="name=secret&before={conversation_id}"),
    "GET /ui/conversations": Case("shared"),
    "GET /ui/conversations/{conversation_id}": Case("owned"),
    "PATCH /ui/conversations/{conversation_id}": Case("owned", {"title": "x"}),
    "DELETE /ui/conversations/{conversation_id}": Case("owned", {}),
    "GET /ui/conversations/{conversation_id}/state": Case("owned"),
    "GET /ui/conversations/{conversation_id}/messages": Case("owned", query="before={message_id}"),
    "GET /ui/conversations/{conversation_id}/context": Case("owned"),
    "PATCH /ui/conversations/{conversation_id}/context": Case("owned", {"strategy": "full"}),
    "POST /ui/conversations/{conversation_id}/memory": Case("owned", {"text": "x", "version": 1}),
    "POST /ui/conversations/{conversation_id}/memory/undo": Case("owned", {"version": 1}),
    "POST /ui/conversations/{conversation_id}/memory/restore": Case("owned", {"version": 1}),
    "POST /ui/turns": Case("shared", {"text": "Hi"}),
    "POST /ui/messages/{message_id}/regenerate": Case("owned", {}),
    "POST /ui/messages/{message_id}/edit": Case("owned", {"text": "x"}, said=True),
    "POST /ui/messages/{message_id}/continue": Case("owned", {}),
    "POST /ui/messages/{message_id}/select": Case("owned", {}),
    "POST /ui/messages/{message_id}/mark": Case("owned", {"mark": "pin"}),
    "GET /ui/messages/{message_id}/text": Case("owned"),
    "POST /ui/runs/{run_id}/stop": Case("owned", {}),
    "GET /ui/runs/{run_id}/stream": Case("owned"),
    "GET /ui/models": Case("shared"),
    "GET /ui/menu": Case("shared"),
    "GET /ui/models/card": Case("shared", query="model=echo"),
    "GET /ui/models/state": Case("shared", query="model=echo"),
    "GET /ui/models/review": Case("shared", query="model=echo"),
    "GET /ui/families/preview": Case("shared", query="family=echo"),
    "POST /ui/models/load": Case("shared", {"model": "echo"}),
    "POST /ui/models/download": Case("admin", {"model": "echo"}),
    "POST /ui/models/cancel": Case("admin", {"model": "echo"}),
    "POST /ui/models/unload": Case("admin", {"model": "echo"}),
    "POST /ui/models/remove": Case("admin", {"model": "echo"}),
    "POST /ui/models/bring": Case("admin", {"name": "echo"}),
    "POST /ui/models/choice": Case("admin", {"model": "echo"}),
    "POST /ui/models/choice/reset": Case("admin", {"model": "echo"}),
    "POST /ui/models/choice/yaml": Case(
        "admin", {"model": "echo", "part": "answer", "text": "generation_config:\n  top_p: 0.5\n"}
    ),
    # --- the pages around the chat ---
    "GET /login": Case("open"),
    "POST /login": Case("open"),
    "GET /login/oidc": Case("open"),
    "GET /login/oidc/callback": Case("open"),
    "POST /logout": Case("open"),
    "GET /invite/{token}": Case("open"),
    "POST /invite/{token}": Case("open"),
    "GET /account": Case("shared"),
    "POST /account/password": Case("shared", form={"old": PASSWORD, "new": PASSWORD, "again": PASSWORD}),
    "GET /account/export": Case("shared"),
    "POST /account/erase": Case("shared", form={"password": PASSWORD}),
    "POST /account/sessions/{session_id}/end": Case("owned"),
    "POST /account/keys": Case("shared", form={"name": "k", "scopes": "chat"}),
    "POST /account/keys/{key_id}/revoke": Case("owned"),
    "GET /batches": Case("shared"),
    "GET /batches/new": Case("shared"),
    "POST /batches": Case("shared", form={"endpoint": "/v1/completions"}, file=True),
    "POST /batches/{batch_id}/cancel": Case("owned"),
    "GET /people": Case("admin"),
    "POST /people/invites": Case("admin"),
    "POST /people/invites/{invite_id}/withdraw": Case("admin"),
    "POST /people/users/{user_id}": Case("admin", form={"what": "member"}),
    "POST /people/users/{user_id}/limits": Case("admin", form={"concurrent": "2"}),
    "POST /people/users/{user_id}/password": Case("admin", form={"new": "another password"}),
    "POST /people/keys/{key_id}/revoke": Case("admin"),
}
"""Every route there is. A new one is put here with what it is, or the test of this list fails."""


def routes_of(app: FastAPI) -> Iterator[str]:
    """What is asked and where, of each route of ours."""
    for path, route in _flat(app.routes, ""):
        methods = route.methods or set()
        if "TRACE" not in methods:  # else it is what says 404 in our shape
            yield from (f"{method} {path}" for method in methods - {"HEAD"})


def _flat(routes: Any, prefix: str) -> Iterator[tuple[str, APIRoute]]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield prefix + route.path, route
        elif (inner := getattr(route, "original_router", None)) is not None:
            yield from _flat(inner.routes, prefix + route.include_context.prefix)


async def filled(world: World, name: str) -> dict[str, str]:
    """Names of things that belong to somebody: what stands in a path's braces."""
    service, user = world.service, world.users[name]
    with acting_as(user.id):
        conversation = await service.store.create(title="a secret")
        first = await service.turn(conversation.id, "Hello")
        await first.wait()
        run = await service.turn(conversation.id, "Hello again")
        await run.wait()
        await service.store.contexts.remember(conversation.id, Memory("facts", "a secret", run.message_id))
        share = await service.store.shares.make(conversation.id)
        persona = await service.store.personas.create(name="a secret", system="a secret")
        _, key = await service.accounts.create_key("k")
        entry = await service.accounts.enter(user, device="", address="")
    made = await world.ask("POST", "/v1/responses", as_=name, json={"input": "Hello"})
    items = await world.ask("GET", f"/v1/conversations/{conversation.id}/items", as_=name)
    file = await world.ask(
        "POST", "/v1/files", as_=name, data={"purpose": "batch"}, files={"file": ("a secret", b"{}")}
    )
    about = BATCH | {"input_file_id": file.json()["id"]}
    batch = await world.ask("POST", "/v1/batches", as_=name, json=about)
    token, invite = await service.accounts.invite()
    return {
        "file_id": file.json()["id"],
        "batch_id": batch.json()["id"],
        "token": token,
        "share_id": share.id,
        "persona_id": persona.id,
        "conversation_id": conversation.id,
        "message_id": run.message_id,
        "said_id": run.user_message_id or "",
        "run_id": run.id,
        "response_id": made.json()["id"],
        "item_id": items.json()["data"][-1]["id"],
        "key_id": key.id,
        "session_id": entry.session.id,
        "user_id": user.id,
        "invite_id": invite.id,
        "model_id": "echo",
        "model_id:path": "echo",
    }


def path_of(route: str, names: dict[str, str], case: Case) -> str:
    if case.said:
        names = {**names, "message_id": names["said_id"]}
    path = re.sub(r"{([^}]*)}", lambda found: names[found[1]], route.partition(" ")[2])
    return f"{path}?{case.query.format(**names)}" if case.query else path


def sent(case: Case, names: dict[str, str]) -> dict[str, Any]:
    """What a request to this route carries, with the names of things put in."""
    body = case.body
    if body is BATCH:
        body = body | {"input_file_id": names["file_id"]}
    elif body is not None:
        body = {
            key: value.format(**names) if isinstance(value, str) and value.startswith("{") else value
            for key, value in body.items()
        }
    files = {"file": ("in.jsonl", b"{}")} if case.file else None
    return {"json": body, "data": case.form, "files": files}


@dataclass
class Tried:
    """Asks, and notes what should not have been answered."""

    world: World
    names: dict[str, str]
    wrong: list[str]

    async def expect(self, route: str, who: str, expected: set[int], path: str, **how: Any) -> None:
        method = route.partition(" ")[0]
        answer = await self.world.ask(method, path, **sent(ROUTES[route], self.names), **how)
        status = answer.status_code
        if answer.headers.get("location", "").startswith("/login"):
            status = 401
        if status not in expected or "a secret" in answer.text:
            self.wrong.append(f"{route} as {who}: {answer.status_code} {answer.text[:200]}")


async def strangers(world: World) -> dict[str, dict[str, Any]]:
    """Ways to ask that open nothing any more, or never did."""
    accounts = world.service.accounts
    revoked = await world.key("ben", "chat", "conversations", "files", "batches")
    (key, *_) = await accounts.credentials.keys(world.users["ben"].id)
    await accounts.credentials.revoke(key.id, user_id=None)
    gone = await accounts.add("gone", PASSWORD)
    world.tokens["gone"] = (await accounts.enter(gone, device="", address="")).token
    kept = await world.key("ben", "chat")
    world.users["gone"] = gone
    disabled = await world.key("gone", "chat", "conversations", "files", "batches")
    await accounts.people.change(gone.id, disabled=True)
    assert kept != disabled
    return {
        "nobody": {},
        "a revoked key": {"headers": revoked},
        "a disabled user": {"as_": "gone"},
        "a disabled user's key": {"headers": disabled},
        "a guess": {"headers": {"authorization": "Bearer rally_guess", "cookie": f"{COOKIE}=guess"}},
    }


@pytest.mark.timeout(300)
async def test_every_route_refuses_everybody_it_is_not_for(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        names = await filled(world, "ben")
        nothing = dict.fromkeys(names, "nothing")
        unknown = await strangers(world)
        narrow = {
            scope: await world.key("ben", *({"chat", "files"} - {scope}))
            for scope in ("chat", "files", "other")
        }
        wide = {"headers": await world.key("ada", "chat", "conversations", "files", "batches")}
        tried = Tried(world, names, [])
        for route, case in ROUTES.items():
            path, api = path_of(route, names, case), is_ours(route.partition(" ")[2])
            if case.kind == "open":
                await tried.expect(route, "nobody", {200, 400, 401, 404, 503}, path)
                continue
            for who, how in unknown.items():
                await tried.expect(route, who, {401}, path, **how)
            scope = scope_of(path.partition("?")[0])
            if not api:
                await tried.expect(route, "a key, on the page", {401}, path, **wide)
            elif scope != "any":
                less = narrow.get(scope, narrow["other"])
                await tried.expect(route, f"a key that is not for {scope}", {403}, path, headers=less)
            elif route.startswith(("POST /v1/me", "DELETE /v1/me")) or case.kind == "self":
                await tried.expect(route, "a key, in person", {403}, path, **wide)
            if case.kind == "admin":
                member = path_of(route, nothing, case)
                await tried.expect(route, "a member", {403, 409}, member, as_="eve")
                await tried.expect(route, "an admin's key that is not for it", {401, 403}, path, **wide)
            elif case.kind == "owned":
                await tried.expect(route, "somebody else", {404}, path, as_="eve")
                await tried.expect(route, "an admin whose it is not", {404}, path, as_="ada")
        assert not tried.wrong, "\n".join(tried.wrong)


@pytest.mark.timeout(300)
async def test_every_route_lets_those_in_whom_it_is_for(tmp_path: Path) -> None:
    """So that a refusal above is one for who asks, not for a mistake in how it is asked."""
    wrong: list[str] = []
    order = {"GET": 0, "PATCH": 1, "POST": 2, "DELETE": 3}

    def when(route: str) -> tuple[bool, int, int]:
        """Others' deeds last, deleting after all else."""
        return ROUTES[route].kind == "admin", order[route.partition(" ")[0]], -len(route)

    routes = sorted(ROUTES, key=when)
    async with people(tmp_path, mount=True) as world:
        names = await filled(world, "ben")
        for route in routes:
            case, method = ROUTES[route], route.partition(" ")[0]
            if method == "DELETE" or "/memory" in route:
                names = await filled(world, "ben")
            as_ = "ada" if case.kind == "admin" else "ben"
            if "erase" in route or route == "DELETE /v1/users/{user_id}":
                leaving = await world.service.accounts.add("leaving", PASSWORD)
                world.tokens["leaving"] = (
                    await world.service.accounts.enter(leaving, device="", address="")
                ).token
                names["user_id"], as_ = leaving.id, "leaving" if "erase" in route else as_
            path = path_of(route, names, case)
            answer = await world.ask(method, path, as_=as_, **sent(case, names))
            good = {200, 202, 204, 303, 409, 503} | ({400, 401, 404} if case.kind == "open" else set())
            if route == "POST /v1/conversations/import":
                good |= {400}  # it is read, and found to be empty
            if answer.status_code not in good or "/login?" in answer.headers.get("location", ""):
                wrong.append(f"{route} as {as_}: {answer.status_code} {answer.text[:200]}")
            if route.endswith("/password") or route == "POST /logout":
                ben = world.users["ben"]
                world.tokens["ben"] = (await world.service.accounts.enter(ben, device="", address="")).token
        assert not wrong, "\n".join(wrong)


async def test_no_route_is_missing_in_the_list(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        from rallychat import ui

        app = ui.mount(create_app(service, service.settings), service)
        assert set(routes_of(app)) == set(ROUTES)


def test_a_path_that_nobody_thought_of_wants_an_admin_s_key() -> None:
    assert scope_of("/v1/anything") == "admin"
    assert scope_of("/v1/modelsandmore") == "admin"
    assert not is_open("/v1/anything")


# --- the page, sockets, and what is around them -------------------------------------------------------------


async def test_the_page_leads_to_the_login_and_back(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        answer = await world.ask("GET", "/?model=echo")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2F%3Fmodel%3Decho")
        assert (await world.ask("GET", "/")).headers["location"] == "/login"
        assert (await world.ask("GET", "/", as_="ben")).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/config", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/file=/etc/passwd", "/assets/x.js"],
)
async def test_gradio_s_own_routes_are_behind_the_same_wall(path: str, tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:
        for method in ("GET", "POST"):
            assert (await world.ask(method, path)).status_code in (303, 401)


async def test_a_websocket_of_nobody_is_closed(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        app = world.http._transport.app  # type: ignore[attr-defined]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/gradio_api/queue/join", "headers": [], "query_string": b""}
        await app(scope, receive, send)
        assert [one["type"] for one in sent] == ["websocket.close"]


async def test_a_wrong_key_is_told_as_openai_tells_it(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        wrong = {"authorization": "Bearer rally_wrong"}
        answer = await world.ask("GET", "/v1/models", headers=wrong)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "rally_wrong" not in answer.text


async def test_an_openai_client_is_told_apart_by_its_key(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        ben, eve = await world.key("ben", "conversations"), await world.key("eve", "conversations")
        made = (await world.ask("POST", "/v1/conversations", headers=ben, json={})).json()
        assert (await world.ask("GET", f"/v1/conversations/{made['id']}", headers=ben)).status_code == 200
        assert (await world.ask("GET", f"/v1/conversations/{made['id']}", headers=eve)).status_code == 404


async def test_the_same_idempotency_key_of_two_people_is_two(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        made = [
            (
                await world.ask(
                    "POST", "/v1/conversations", as_=name, json={}, headers={"idempotency-key": "once"}
                )
            ).json()["id"]
            for name in ("ben", "ben", "eve")
        ]
        assert made[0] == made[1] != made[2]


async def test_a_session_ends_at_once_for_whoever_is_disabled_or_logged_out(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        assert (await world.ask("GET", "/v1/me", as_="eve")).json()["name"] == "eve"
        session = (await world.ask("GET", "/v1/me/sessions", as_="eve")).json()["data"][0]
        assert session["current"] is True
        await world.ask("DELETE", f"/v1/me/sessions/{session['id']}", as_="eve")
        assert (await world.ask("GET", "/v1/me", as_="eve")).status_code == 401
        await world.service.accounts.people.change(world.users["ben"].id, disabled=True)
        assert (await world.ask("GET", "/v1/me", as_="ben")).status_code == 401


async def test_an_answer_that_grows_goes_on_for_its_person_after_their_connection_has_left(
    tmp_path: Path,
) -> None:
    async with people(tmp_path) as world:
        with acting_as(world.users["ben"].id):
            conversation = await world.service.store.create()
            run = await world.service.turn(conversation.id, "!count 50")
            async with aclosing(run.attach()) as events:
                await anext(events)
            await run.wait()
            assert (await world.service.store.message(run.message_id)).finish_reason == "stop"


async def test_without_accounts_this_machine_s_person_needs_no_login_and_is_admin(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        async with client(create_app(service, service.settings)) as http:
            said = (await http.get("/v1/me", headers={"authorization": "Bearer sk-anything"})).json()
            assert (said["id"], said["role"], said["via"]) == ("local", "admin", "local")


async def test_an_account_makes_the_next_start_ask_everybody(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        await service.accounts.add("ada", PASSWORD, role="admin")
        async with client(create_app(service, service.settings)) as http:
            assert (await http.get("/v1/me")).status_code == 401


async def test_who_is_let_in_without_login_from_elsewhere_manages_nobody(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path, host="0.0.0.0", no_auth=True)) as service:
        async with client(create_app(service, service.settings)) as http:
            assert (await http.get("/v1/me")).json()["role"] == "member"
            for path in ("/v1/users", "/v1/keys", "/v1/audit"):
                assert (await http.get(path)).status_code == 403
            assert (await http.post("/v1/me/keys", json={"name": "k"})).status_code == 403


async def test_who_is_let_in_without_login_sees_no_key_of_the_operator_s_and_revokes_none(
    tmp_path: Path,
) -> None:
    async with ChatService.open(settings(tmp_path, host="0.0.0.0", no_auth=True)) as service:
        _, key = await service.accounts.create_key("backup")
        app = create_app(service, service.settings)
        ui.mount(app, service)
        async with client(app) as http:
            assert (await http.get("/v1/me/keys")).json()["data"] == []
            assert "backup" not in (await http.get("/account")).text
            with zipfile.ZipFile(io.BytesIO((await http.get("/v1/me/export")).content)) as archive:
                assert not [name for name in archive.namelist() if b"backup" in archive.read(name)]
            assert (await http.delete(f"/v1/me/keys/{key.id}")).status_code == 403
            assert (await http.post(f"/account/keys/{key.id}/revoke")).status_code == 403
        assert [each.revoked_at for each in await service.accounts.keys()] == [None]
        await service.accounts.revoke(key.id)


async def test_healthz_answers_when_the_database_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with people(tmp_path) as world:

        async def broken(*_: Any, **__: Any) -> Any:
            from rallychat.errors import StoreError

            raise StoreError("The disk is full.")

        monkeypatch.setattr(world.service.accounts.credentials, "session", broken)
        assert (await world.ask("GET", "/healthz", as_="ben")).status_code == 200
        assert (await world.ask("GET", "/v1/me", as_="ben")).status_code == 503


@pytest.mark.parametrize(
    ("lines", "token"),
    [
        ([f"{COOKIE}=abc"], "abc"),
        ([f"other=1; {COOKIE}=abc"], "abc"),
        (["other=1", f"{COOKIE}=abc"], "abc"),
        ([f"{COOKIE}="], ""),
        (["nonsense"], None),
        (["\x00=;;=,", f"{COOKIE}=abc"], "abc"),
        ([], None),
    ],
)
def test_the_session_s_cookie_is_found_among_others(lines: list[str], token: str | None) -> None:
    assert token_of(lines) == token


@pytest.mark.parametrize("other", ['a={"x":1}', "a=\xe4", "no name", "path=/", "a@b=1", 'a="b', ""])
def test_a_session_is_known_beside_whatever_other_servers_of_this_name_have_set(other: str) -> None:
    """A browser sends the cookies of every port of a host."""
    assert token_of([f"{other}; {COOKIE}=abc; z=1"]) == "abc"
    assert token_of([other]) is None


async def test_a_key_for_chat_reads_no_conversation_by_answering_in_it(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        made = await world.ask("POST", "/v1/conversations", as_="ben", json={})
        asked = {"input": "What did I say?", "conversation": made.json()["id"]}
        chat, both = await world.key("ben", "chat"), await world.key("ben", "chat", "conversations")
        refused = await world.ask("POST", "/v1/responses", json=asked, headers=chat)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert (await world.ask("POST", "/v1/responses", json=asked, headers=both)).status_code == 200


async def test_a_key_for_chat_reads_no_conversation_by_its_responses(tmp_path: Path) -> None:
    question = {"input": "What does my parrot Zorro eat?"}
    async with people(tmp_path, elsewhere=True) as world:
        chat, both = await world.key("ben", "chat"), await world.key("ben", "chat", "conversations")
        said = {"role": "user", "content": "My parrot Zorro eats papaya seeds every morning."}
        made = (await world.ask("POST", "/v1/conversations", headers=both, json={"items": [said]})).json()
        within = question | {"conversation": made["id"]}
        once = {"idempotency-key": "once"}
        first = await world.ask("POST", "/v1/responses", json=within, headers=both | once)
        path = f"/v1/responses/{first.json()['id']}"
        after = question | {"previous_response_id": first.json()["id"]}
        for method, where, body, more in (
            ("POST", "/v1/responses", within, once),
            ("POST", "/v1/responses", after, {}),
            ("POST", "/v1/responses", after | {"store": False}, {}),
            ("POST", "/v1/responses", question | {"elsewhere": True}, {}),
            ("GET", path, None, {}),
            ("GET", f"{path}?stream=true", None, {}),
            ("GET", f"{path}/input_items", None, {}),
            ("POST", f"{path}/cancel", None, {}),
            ("DELETE", path, None, {}),
        ):
            refused = await world.ask(method, where, headers=chat | more, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), (
                method,
                where,
            )
        assert (await world.ask("GET", path, headers=both)).json() == first.json()
        quoted = await world.ask("POST", "/v1/responses", json=question, headers=both)
        assert quoted.json()["context"]["elsewhere"]
        own = await world.ask("POST", "/v1/responses", json=question, headers=chat)
        assert own.json()["context"]["elsewhere"] == []
        follows = question | {"previous_response_id": own.json()["id"]}
        assert (await world.ask("POST", "/v1/responses", json=follows, headers=chat)).status_code == 200


async def test_a_page_whose_database_is_away_says_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with people(tmp_path) as world:

        async def away(_: str) -> None:
            raise StoreUnavailable("The database cannot be reached.")

        monkeypatch.setattr(world.service.accounts, "of_session", away)
        refused = await world.ask("GET", "/ui/conversations", as_="ben")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
