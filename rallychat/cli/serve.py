"""`rallychat serve`: opens the service, makes the first model ready, serves page and API until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from rallychat import garbage, logs
from rallychat.cli.imports import write_no_stubs
from rallychat.cli.options import complain, literal
from rallychat.errors import RallyChatError, SettingsError
from rallychat.settings import Settings
from rallychat.tracing import tracing

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from rallychat.catalog import Model
    from rallychat.chat import ChatService
    from rallychat.runs import Runs

FAREWELL_SECONDS = 3
"""How long open connections may take to end after Ctrl-C; answers are stored whether they do or not."""


async def serve(settings: Settings, *, console: Console | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code.

    Raises:
        SettingsError: the address is refused or taken.
    """
    console = console or Console(stderr=True)
    refuse_contradictions(settings)
    logs.configure(settings.log_level, settings.log_format)
    listener = listen(settings)
    if listener is None:
        return show_running(settings, console)
    url = url_of(settings, listener)
    from rallychat.chat import ChatService

    with listener, tracing():
        async with ChatService.open(settings) as service:
            settings = service.settings
            refuse_strangers(settings, known=await service.accounts.known())
            for note in service.notes:
                console.print(note, style="yellow", markup=False)
            ready = asyncio.create_task(make_ready(service, console))
            await asyncio.sleep(0)  # lets the worker start before the imports below take a core
            try:
                app = await asyncio.to_thread(build, service, settings)
                server = build_server(
                    app,
                    started=lambda: greet(url, settings, console),
                    stopping=lambda: farewell(service.runs, settings.shutdown_grace, console),
                    hurry=service.runs.hurry,
                )
                async with shared(settings, listener, console):
                    await server.serve(sockets=[listener])
            finally:
                ready.cancel()
            console.print("Stopped. Running answers are stored.", style="dim")
    return 0 if server.started else 1


def build(service: ChatService, settings: Settings) -> FastAPI:
    """The application: the API, and the page beside it unless it is not wanted."""
    from rallychat.api import create_app

    app = create_app(service, settings)
    if settings.api_only:
        return app
    write_no_stubs()
    from rallychat import ui

    return ui.mount(app, service)


async def make_ready(service: ChatService, console: Console) -> None:
    """Fetch and load the first model, with a progress bar. A failure is said here; the server stays up."""
    from rallychat.cli.progress import fetch_with_bar

    try:
        model = service.resolve(None)
        again = service.settings.force_download_ckpt
        await fetch_with_bar(service.downloads, model, service.settings, console, force=again)
        tell_estimate(model, service.settings, console)
        await service.load(service.settings.model)
    except RallyChatError as exc:
        complain(exc.message, exc.hint)
    else:
        console.print(f"{literal(model.name)} is ready.")


def tell_estimate(model: Model, settings: Settings, console: Console) -> None:
    """Say how a checkpoint is about to be loaded, and what that takes, before it takes it."""
    from rallychat.catalog.sizing import precision
    from rallychat.cli.models import size

    chosen = precision(model, settings) if model.engine == "transformers" else None
    if chosen is not None:
        there = f"{size(chosen.needed)} of {size(chosen.room)}"
        console.print(
            f"Loading {literal(model.name)} as {chosen.precision}: about {there} of memory.", style="dim"
        )


# --- the address --------------------------------------------------------------------------------------------


def refuse_strangers(settings: Settings, *, known: bool) -> None:
    """Refuse to be reached by others where nobody could say who they are, unless that was asked for.

    Args:
        known: there are accounts, or keys.

    Raises:
        SettingsError: with the ways out.
    """
    if settings.no_auth or known or not (settings.others_can_reach or settings.auth == "required"):
        return
    ways = "make an account with `rallychat users add NAME --admin` or a key with `rallychat keys create NAME`, or say "
    if settings.share:
        raise SettingsError(
            "--share would let everyone who learns the public address in, and nobody has an account.",
            hint=f"{ways}--no-auth if that is what you want",
        )
    if settings.beyond_loopback:
        raise SettingsError(
            f"Listening on {settings.host} would let everyone who reaches it in, and nobody has an account.",
            hint=f"{ways}--no-auth if the network itself keeps strangers out",
        )
    raise SettingsError(
        "Logins are required (by 'allowed_hosts' or 'auth'), and nobody has an account.",
        hint=f"{ways}--no-auth if whatever stands in front asks for them",
    )


def refuse_contradictions(settings: Settings) -> None:
    """Refuse what cannot both be done.

    Raises:
        SettingsError: naming both.
    """
    if settings.offline and (settings.force_download_ckpt or settings.share):
        what = "--share" if settings.share else "--force-download-ckpt"
        raise SettingsError(f"{what} needs the network, and --offline forbids it.", hint="leave one out")
    if settings.multi_gpu and settings.quantize in ("int8", "int4"):
        raise SettingsError(
            f"--multi-gpu loads a model in 16 bits, and --quantize {settings.quantize} does not.",
            hint="leave one out",
        )


def already_running(settings: Settings) -> bool:
    """Does a RallyChat answer at this address?"""
    import httpx

    try:
        answer = httpx.get(f"{url_of(settings)}openapi.json", timeout=5, trust_env=False)
        return bool(answer.json()["info"]["title"] == "RallyChat")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False


def listen(
    settings: Settings, *, runs_here: Callable[[Settings], bool] = already_running
) -> socket.socket | None:
    """A listening socket; None where RallyChat itself already answers at this address.

    Raises:
        SettingsError: the address is taken by something else, or is not this machine's.
    """
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            settings.host.strip("[]") or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as exc:
        raise SettingsError(f"The address {settings.host} cannot be used: {exc.strerror or exc}.") from exc
    try:
        if os.name != "nt":  # on Windows this option would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        if runs_here(settings):
            return None
        raise SettingsError(
            f"Port {settings.port} on {settings.host} cannot be used: {exc.strerror or exc}.",
            hint="stop what uses it, or choose another: rallychat serve --port 0 takes a free one",
        ) from exc
    listener.setblocking(False)  # noqa: FBT003
    return listener


def url_of(settings: Settings, listener: socket.socket | None = None) -> str:
    """The URL a browser on this machine opens."""
    host = settings.host.strip("[]")
    port = listener.getsockname()[1] if listener else settings.port
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - every address of this machine; a browser needs one of them
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def show_running(settings: Settings, console: Console) -> int:
    """RallyChat runs here already: say so and open its page."""
    url = url_of(settings)
    console.print(f"RallyChat is already running at [bold]{literal(url)}[/]")
    console.print("For a second one choose another port: rallychat serve --port 0", style="dim")
    if settings.open_browser and not settings.api_only:
        open_page(url)
    return 0


def greet(url: str, settings: Settings, console: Console) -> None:
    """Say where the page is, and open it."""
    what = "API" if settings.api_only else "page"
    console.print(f"RallyChat's {what} is at [bold]{literal(url)}[/] [dim](Ctrl-C stops)[/]")
    if settings.open_browser and not settings.api_only:
        open_page(url)


@asynccontextmanager
async def shared(settings: Settings, listener: socket.socket, console: Console) -> AsyncIterator[None]:
    """With `share`: has a public address while the block runs. A failure is said; the server goes on without."""
    if not settings.share:
        yield
        return
    from rallychat.ui import tunnel

    async def share() -> None:
        try:
            here = urlsplit(url_of(settings, listener))
            url = await tunnel.open_tunnel(here.hostname or "", here.port or 0, folder=settings.data_dir)
        except RallyChatError as exc:
            complain(exc.message, exc.hint)
        else:
            console.print(f"Everyone on the internet reaches it at [bold]{literal(url)}[/]")

    sharing = asyncio.create_task(share())
    try:
        yield
    finally:
        sharing.cancel()
        tunnel.close()


def open_page(url: str) -> None:
    """Open the page where there is a screen; a browser inside the terminal would take it over."""
    screen = (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("WSL_DISTRO_NAME")
    )
    if sys.platform in ("win32", "darwin") or screen:
        webbrowser.open(url)


# --- the server ---------------------------------------------------------------------------------------------


async def farewell(runs: Runs, grace: float, console: Console) -> None:
    """Begin nothing new; let what runs end in time."""
    if runs.growing and grace:
        what = "1 answer" if runs.growing == 1 else f"{runs.growing} answers"
        console.print(f"Stopping: {what} may take {grace:g} s to end (Ctrl-C again: at once).", style="dim")
    await runs.drain(grace)


def build_server(
    app: FastAPI,
    *,
    started: Callable[[], None],
    stopping: Callable[[], Awaitable[None]],
    hurry: Callable[[], None],
) -> uvicorn.Server:
    """A uvicorn server that leaves the end of the process to us.

    Calls `started` once it answers, `stopping` before it waits for its connections to end, and `hurry` when it is
    told to stop a second time. A third time ends the process as it stands.
    """
    import uvicorn

    loop = asyncio.get_running_loop()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                garbage.settle()
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await stopping()  # ends the streams, which would keep their connections open
            await super().shutdown(sockets=sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                self.force_exit = True
                loop.call_soon_threadsafe(hurry)
                for number in STOPPING:
                    signal.signal(number, signal.SIG_DFL)
            self.should_exit = True

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own raises the signal again when it is done, before the service has stored its answers
            before = {number: signal.signal(number, self.handle_exit) for number in STOPPING}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # the app knows which proxies are believed
            timeout_graceful_shutdown=FAREWELL_SECONDS,
            server_header=False,
        )
    )


STOPPING = (signal.SIGINT, signal.SIGTERM)
