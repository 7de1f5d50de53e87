"""Web pages of other origins cannot use a server that has no login; sizes are bounded; answers carry an id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from rallychat.api.guard import Guard
from rallychat.settings import is_loopback
from tests.api_world import chat, client, scripted, settings


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "a.localhost", "::ffff:127.0.0.1"],
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "x"],
)
def test_not_loopback(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    assert settings(tmp_path, host=host).beyond_loopback


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("LocalHost:9000", 200),
        ("[::1]:7860", 200),
        ("chat.example.com", 200),
        ("evil.example:7860", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.2:7860", 403),
        ("[::1", 403),
        ("a b", 403),
    ],
)
async def test_on_loopback_only_known_hosts_are_answered(tmp_path: Path, host: str, status: int) -> None:
    app, _ = scripted(tmp_path, allowed_hosts=("Chat.example.com",))
    async with client(app) as http:
        response = await http.get("/healthz", headers={"host": host})
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == "foreign_host"


async def test_beyond_loopback_any_host_is_answered(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, host="0.0.0.0")
    async with client(app) as http:
        response = await http.get("/healthz", headers={"host": "chat.example.com"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("chat.example.com", 200),
        ("CHAT.example.com:8443", 200),
        ("127.0.0.1:7860", 200),
        ("10.1.2.3:7860", 200),
        ("10.1.2.4:7860", 403),
        ("evil.example", 403),
    ],
)
async def test_beyond_loopback_names_that_are_said_are_the_only_ones(
    tmp_path: Path, host: str, status: int
) -> None:
    app, _ = scripted(tmp_path, host="0.0.0.0", allowed_hosts=("Chat.example.com",))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://10.1.2.3:7860"
    ) as http:  # the address that a connection came to
        response = await http.get("/healthz", headers={"host": host})
    assert response.status_code == status


async def test_a_shared_server_is_reached_by_the_name_of_its_tunnel(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, share=True, allowed_hosts=("chat.example.com",))
    async with client(app) as http:
        response = await http.get("/healthz", headers={"host": "0123abcd.gradio.live"})
    assert response.status_code == 200


async def test_two_hosts_are_one_too_many(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, host="0.0.0.0")
    async with client(app) as http:
        response = await http.get("/healthz", headers=[("host", "a"), ("host", "b")])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_host")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:7860", 200),
        ("https://chat.example.com", 200),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost:7860", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("://", 403),
    ],
)
@pytest.mark.parametrize("beyond", [False, True])
async def test_other_origins_cannot_change_anything(
    tmp_path: Path, origin: str, status: int, beyond: bool
) -> None:
    given = {"host": "0.0.0.0"} if beyond else {}
    app, service = scripted(tmp_path, allowed_hosts=("chat.example.com",), **given)
    async with client(app) as http:
        response = await http.post("/v1/chat/completions", json=chat(), headers={"origin": origin})
    assert response.status_code == status
    assert len(service.asked) == (status == 200)


async def test_the_port_may_be_left_out_where_it_is_the_usual_one(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        headers = {"host": "localhost:80", "origin": "http://localhost"}
        response = await http.post("/v1/chat/completions", json=chat(), headers=headers)
    assert response.status_code == 200


async def test_other_origins_are_given_no_permission_to_read(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        preflight = await http.options("/v1/chat/completions", headers=asked)
        read = await http.get("/v1/models/nothing", headers={"origin": "https://evil.example"})
    for response in (preflight, read):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert preflight.status_code == 405


async def test_websockets_of_other_hosts_are_closed(tmp_path: Path) -> None:
    sent: list[Message] = []

    async def app(*_: object) -> None:
        raise AssertionError("must not be reached")

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    guard = Guard(app, settings(tmp_path))
    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"evil.example")]}
    await guard(scope, receive, send)
    assert [(m["type"], m["code"]) for m in sent] == [("websocket.close", 1008)]


async def test_a_request_keeps_its_id_or_gets_one(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        kept = await http.get("/healthz", headers={"x-request-id": "abc-1.2_3"})
        made = await http.get("/healthz")
        refused = await http.get("/healthz", headers={"x-request-id": "a b"})
        long = await http.get("/healthz", headers={"x-request-id": "a" * 129})
        foreign = await http.get("/healthz", headers={"host": "evil.example", "x-request-id": "me"})
    assert (kept.headers["x-request-id"], foreign.headers["x-request-id"]) == ("abc-1.2_3", "me")
    assert len({each.headers["x-request-id"] for each in (made, refused, long)}) == 3
    assert made.headers["x-request-id"].startswith("req_")


async def test_answers_are_not_pages(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        for path in ("/healthz", "/v1/nothing", "/openapi.json"):
            headers = (await http.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["cross-origin-resource-policy"] == "same-origin"
        page = (await http.get("/a-page")).headers
    assert page["x-content-type-options"] == "nosniff"
    assert "content-security-policy" not in page


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused(tmp_path: Path, announced: bool) -> None:
    app, service = scripted(tmp_path, max_body_bytes=2048)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 1000

    async with client(app) as http:
        response = await http.post(
            "/v1/chat/completions",
            content=b" " * 3000 if announced else body(),
            headers={"content-type": "application/json"},
        )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert "2048" in response.json()["error"]["message"]
    assert service.asked == []


async def test_a_body_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path, max_body_bytes=2048)
    start, end = b'{"messages":[{"role":"user","content":"', b'"}]}'
    content = start + b"x" * (2048 - len(start) - len(end)) + end
    async with client(app) as http:
        response = await http.post(
            "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
    assert response.status_code == 200
