from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from rallychat.api import create_app
from rallychat.chat import ChatService
from rallychat.settings import Settings
from rallychat.ui import mount
from rallychat.ui.page import STATIC

QUIET = """
import asyncio, sys, threading
asked = []
sys.addaudithook(lambda event, args: asked.append(args) if event == "socket.getaddrinfo" else
    asked.append(args) if event == "socket.connect" and isinstance(args[1], tuple) else None)

async def main():
    from rallychat.api import create_app
    from rallychat.chat import ChatService
    from rallychat.settings import Settings
    from rallychat.ui import mount
    settings = Settings(data_dir=sys.argv[1], model="echo")
    async with ChatService.open(settings) as service:
        app = mount(create_app(service, settings), service)
        async with app.router.lifespan_context(app):
            pass

asyncio.run(main())
for thread in threading.enumerate():  # telemetry would be sent from one
    if thread is not threading.main_thread():
        thread.join(5)
print(asked)
"""


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application, page and API."""
    settings = Settings(data_dir=folder, model="echo")
    async with ChatService.open(settings) as service:
        app = mount(create_app(service, settings), service)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            yield client


async def test_the_page_stands_beside_the_api(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        assert "RallyChat" in (await client.get("/")).text
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).json()["object"] == "list"
        assert (await client.get("/v1/nothing")).json()["error"]["code"] == "not_found"


async def test_the_page_names_no_other_host(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        html = (await client.get("/")).text
        hosts = set(re.findall(r"(?:src|href|content|url)\s*[=(:]\s*[\"']?(?:https?:)?//([^/\"'\s)]+)", html))
        assert hosts - {"127.0.0.1:7860"} <= {"gradio.app"}  # in a meta tag that nothing fetches


async def test_only_scripts_of_the_page_itself_may_run(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        first, second = await client.get("/"), await client.get("/")
        policy = first.headers["content-security-policy"]
        nonces = re.findall(r"'nonce-([^']+)'", policy)
        assert len(nonces) == 1
        assert nonces[0] not in second.text
        assert first.text.count("<script") == first.text.count(f'<script nonce="{nonces[0]}"') > 1
        scripts = next(rule for rule in policy.split("; ") if rule.startswith("script-src"))
        assert "'unsafe-inline'" not in scripts
        assert "http:" not in policy
        assert "https:" not in policy


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/hostname"),
        ("GET", "/file=/etc/hostname"),
        ("GET", "/gradio_api/proxy=https://example.com/"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/run/predict"),
        ("GET", "/gradio_api/heartbeat/x"),
        ("GET", "/monitoring"),
    ],
)
async def test_gradio_routes_that_the_page_does_not_need_are_closed(
    tmp_path: Path, method: str, path: str
) -> None:
    async with served(tmp_path) as client:
        assert (await client.request(method, path)).status_code in (404, 405)


async def test_an_address_that_leads_nowhere_is_a_page_for_a_browser_and_an_error_for_a_program(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as client:
        seen = await client.get(
            "/no<b>where", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        )
        assert (seen.status_code, seen.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "This server has no page /no&lt;b&gt;where." in seen.text
        assert 'href="/">To the chat</a>' in seen.text
        told = await client.get("/nowhere")
        assert (told.status_code, told.json()["error"]["code"]) == (404, "not_found")


async def test_files_are_asked_for_again_so_that_versions_are_never_mixed(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        for file in sorted(STATIC.iterdir()):
            answer = await client.get(f"/ui/static/{file.name}")
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-cache"


async def test_every_module_and_style_that_is_named_exists(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        pages = [(await client.get(path)).text for path in ("/", "/account", "/share/x")]
        named = set(re.findall(r"ui/static/([\w.]+)", "".join(pages)))
    for script in STATIC.glob("*.js"):
        named |= set(re.findall(r'from "\./([\w.]+)"', script.read_text()))
    assert named == {file.name for file in STATIC.iterdir()}


def test_starting_asks_nothing_of_the_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUIET, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_page_is_not_imported_by_a_server_without_it() -> None:
    code = "import sys, rallychat.ui, rallychat.chat, rallychat.api; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
