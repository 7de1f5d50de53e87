"""Gradio's tunnel: an address on the internet that leads to this server."""

from __future__ import annotations

import asyncio
import secrets
import threading
from pathlib import Path

from rallychat.errors import NoNetwork


async def open_tunnel(host: str, port: int, *, folder: Path) -> str:
    """The public address of the server at `host` and `port` of this machine, until `close` or the process's end.

    Gradio fetches the program that does it, once, and says where it leads; both need the internet.

    Args:
        folder: where the certificate of Gradio's server is kept.

    Raises:
        NoNetwork: there is none.
    """
    loop = asyncio.get_running_loop()
    address: asyncio.Future[str] = loop.create_future()

    def work() -> None:
        try:
            found = _open(host, port, folder)
        except Exception as exc:  # whatever keeps Gradio from it, whoever waits must hear of it
            problem: Exception = exc
            loop.call_soon_threadsafe(_end, address, problem)
        else:
            loop.call_soon_threadsafe(_end, address, found)

    # a daemon: Gradio may try for half a minute, and Ctrl-C should not wait for it
    threading.Thread(target=work, daemon=True, name="open a tunnel").start()
    try:
        return await address
    except Exception as exc:
        said = str(exc).splitlines() or [type(exc).__name__]
        raise NoNetwork(
            f"No public address could be had from Gradio: {said[0].rstrip('.')}.",
            hint="the server goes on at its own address",
        ) from exc


def close() -> None:
    """Ends every tunnel."""
    from gradio.tunneling import CURRENT_TUNNELS

    while CURRENT_TUNNELS:
        process, tunnel = CURRENT_TUNNELS[-1].proc, CURRENT_TUNNELS.pop()
        tunnel.proc = None  # else Gradio says at the end of the process that it kills it
        if process is not None:
            process.terminate()
            process.wait()


def _open(host: str, port: int, folder: Path) -> str:
    import rallychat.ui.shell  # noqa: F401 - switches Gradio's telemetry off before Gradio is imported

    from gradio import networking  # isort: skip

    folder.mkdir(parents=True, exist_ok=True)
    vars(networking)["CERTIFICATE_PATH"] = str(
        folder / "gradio-certificate.pem"
    )  # else in the current folder
    return networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)


def _end(address: asyncio.Future[str], outcome: str | Exception) -> None:
    if address.done():  # nobody waits any more
        return
    if isinstance(outcome, str):
        address.set_result(outcome)
    else:
        address.set_exception(outcome)
