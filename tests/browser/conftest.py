"""A real server with the page, and Chromium in front of it. Run with `pytest -m browser`."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from rallychat.api import create_app
from rallychat.chat import ChatService
from rallychat.settings import Settings
from rallychat.ui import mount

expect.set_options(timeout=20_000)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
CHROMIUM_ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ECHO = 'family = "echo"\nengine = "echo"\nwindow = 8192\nlicense = "Apache-2.0"\n[weights]\nkind = "none"\n'
MODELS = {
    "slow": f'name = "Slow echo"\n{ECHO}[options]\ndelay_ms = 15\n',
    "heavy": f'name = "Heavy echo"\n{ECHO}[options]\nload_ms = 3000\n',
    "broken": f'name = "Broken echo"\n{ECHO}[options]\nload_error = "the weights are damaged"\n',
    "thinker": (
        'name = "Thinker"\nfamily = "qwen3"\nengine = "echo"\nwindow = 8192\n[weights]\nkind = "none"\n'
        "[options]\ndelay_ms = 150\n"
        'replies = ["<think>First I count **slowly**, one by one, and once more.</think>The answer is 7."]\n'
    ),
    "markdown": f'name = "Markdown echo"\n{ECHO}[options]\nreplies = ["""%s"""]\n',
}
MARKDOWN = """# Title

A **bold** word and `code`.

```python
def answer() -> int:
    return 42
```

| a | b |
|---|--:|
| 1 | 2 |

<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">
[link](javascript:window.hacked=1) ![picture](https://pictures.example/cat.png)
"""


@dataclass(frozen=True)
class Served:
    """A running server with the page."""

    url: str
    service: ChatService
    loop: asyncio.AbstractEventLoop

    def do(self, work: Any) -> Any:
        """The result of a coroutine, run where the server runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


@contextmanager
def serving(folder: Path, *, port: int = 0, **given: Any) -> Iterator[Served]:
    """Page and API over a data folder, on a free port if none is given, until the block ends."""
    settings = Settings(data_dir=folder, **{"model": "echo", **given})
    started = threading.Event()
    running: dict[str, Any] = {}
    listener = socket.create_server(("127.0.0.1", port))

    async def main() -> None:
        async with ChatService.open(settings) as service:
            app = mount(create_app(service, settings), service)
            config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
            running.update(
                service=service, server=_Server(config, started.set), loop=asyncio.get_running_loop()
            )
            await running["server"].serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)  # a run of tests always ends
    thread.start()
    try:
        assert started.wait(120), "the server did not start"
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Served(url, running["service"], running["loop"])
    finally:
        if "server" in running:
            running["server"].should_exit = True
        thread.join(30)
        listener.close()


def write_models(folder: Path) -> Path:
    """The tests' own echo models in a data folder."""
    models = folder / "catalog" / "models"
    models.mkdir(parents=True)
    for name, text in MODELS.items():
        said = MARKDOWN.replace("\\", "\\\\").replace('"', '\\"')
        (models / f"{name}.toml").write_text(text.replace("%s", said))
    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests that need nothing special of it."""
    with serving(write_models(tmp_path_factory.mktemp("data"))) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser."""
    found = (
        os.environ.get("RALLYCHAT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One person's browser on the page, and everything it asked for."""

    page: Page
    context: BrowserContext
    requests: list[str]
    errors: list[str]


Visiting = Callable[..., AbstractContextManager[Visit]]


@pytest.fixture
def visiting(chromium: Browser) -> Visiting:
    """Opens a page: `with visiting(url, **context options) as visit`."""

    @contextmanager
    def visit(url: str, **options: Any) -> Iterator[Visit]:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        requests: list[str] = []
        errors: list[str] = []
        context.on("request", lambda request: requests.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.goto(url)
        expect(page.locator("html[data-ready]")).to_have_count(1)
        try:
            yield Visit(page, context, requests, errors)
            assert errors == []
        finally:
            context.close()

    return visit


@pytest.fixture
def page(served: Served, visiting: Visiting) -> Iterator[Page]:
    """The page of the shared server, as a new visitor sees it."""
    with visiting(served.url) as visit:
        yield visit.page


def use_model(page: Page, name: str) -> None:
    """Chooses a model in the menu."""
    page.get_by_title("Choose a model").click()
    card = page.locator("#rc-models").get_by_role("article", name=name, exact=True)
    card.get_by_role("button").first.click()
    expect(page.locator("#rc-model-name")).to_have_text(name)
    if page.locator("#rc-models").is_visible():
        page.keyboard.press("Escape")


def say(page: Page, text: str) -> None:
    """Writes a message and sends it with Enter."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def lose_a_reply(page: Page, path: str) -> None:
    """The next POST to this path arrives; what it is answered does not."""

    lost: list[Route] = []

    def lose(route: Route) -> None:
        if lost or route.request.method != "POST":
            route.fallback()
            return
        lost.append(route)
        route.fetch()
        route.abort()

    page.route(path, lose)


def answered(page: Page, count: int = 1, *, seconds: float = 20) -> None:
    """Waits until so many answers are whole."""
    whole = page.locator(".message.assistant:not(.live)")
    expect(page.locator(".message.live")).to_have_count(0, timeout=seconds * 1000)
    expect(whole).to_have_count(count, timeout=seconds * 1000)
