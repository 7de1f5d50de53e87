"""HTTP/1.1 over asyncio streams, as little of it as talking to an engine takes.

A token costs a fifth of what it costs through HTTPX here (measured: 15-20 against 110-150 microseconds of CPU for one
streamed chunk), and on a CPU that time is taken from the engine. One connection a request: closing it cancels.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 256 * 1024 * 1024

_TICKS: Final = 10
"""Looks at a connection within its patience."""
_LATE: Final = 5.0
"""Seconds after which a look is too late to tell anything: this process stood still, perhaps with its peer."""
_BEHIND: Final = 10
"""Times the patience that one answer may be silent while the peer says something in others."""


class WireError(Exception):
    """The peer cannot be reached, went away, or does not speak HTTP."""


class Unreachable(WireError):
    """No connection could be made: nothing was sent."""


class Stalled(WireError):
    """The peer was silent for too long."""


@dataclass(slots=True)
class Pulse:
    """How often a peer was heard, over all requests that share this."""

    beats: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: a Unix socket, or host and port with an optional path in front of every route."""

    socket: Path | None = None
    host: str = "engine"
    port: int = 80
    tls: bool = False
    prefix: str = ""

    @classmethod
    def of_url(cls, url: str) -> Address:
        """The address a base URL names. Raises ValueError if it is not an http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is not an http:// or https:// address")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(host=parts.hostname, port=port, tls=tls, prefix=parts.path.rstrip("/"))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection. Raises Unreachable."""
        try:
            if self.socket is not None:
                return await asyncio.open_unix_connection(str(self.socket), limit=_MAX_HEAD)
            context = ssl.create_default_context() if self.tls else None
            return await asyncio.open_connection(self.host, self.port, ssl=context, limit=_MAX_HEAD)
        except OSError as exc:
            raise Unreachable(str(exc)) from exc


class Response:
    """A response whose head has arrived; its body is read through `chunks`."""

    def __init__(self, status: int, headers: Mapping[str, str], connection: _Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it arrives, in pieces of any size. Raises WireError if it ends early."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            chunked = _Chunked()
            while not chunked.ended:
                if piece := chunked.feed(await self._connection.read()):
                    yield piece
            return
        length = self.headers.get("content-length", "")
        left = int(length) if length.isdecimal() else None
        while left is None or left > 0:
            piece = await self._connection.read(may_end=left is None)
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece

    async def body(self) -> bytes:
        """The whole body."""
        parts, size = [], 0
        async for piece in self.chunks():
            parts.append(piece)
            size += len(piece)
            if size > _MAX_BODY:
                raise WireError("the response is too large")
        return b"".join(parts)


@asynccontextmanager
async def request(
    address: Address,
    method: str,
    path: str,
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    patience: float = 60,
    pulse: Pulse | None = None,
) -> AsyncGenerator[Response]:
    """Send one request; leaving the block closes its connection, whatever was read by then.

    Args:
        address: where to.
        method: `GET` or `POST`.
        path: the route, with its query.
        body: JSON.
        headers: more of them.
        patience: seconds to wait for the connection, the head, and each piece of the body.
        pulse: while the peer is heard in other requests that share this, ten times as long.

    Raises:
        Unreachable: no connection could be made.
        Stalled: nothing came for so long.
        WireError: the connection broke, or the answer is not HTTP.
    """
    connection = await _Connection.open(address, patience, pulse or Pulse())
    try:
        connection.write(_head(address, method, path, len(body), headers or {}) + body)
        yield await _response(connection)
    finally:
        connection.close()


async def events(response: Response) -> AsyncGenerator[bytes]:
    """The data of each server-sent event of a response (one `data:` line each, as all engines send them)."""
    rest = b""
    async for piece in response.chunks():
        lines = (rest + piece if rest else piece).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


class _Connection:
    """A connection that gives up when the peer is silent for too long.

    One timer a connection, looked at when it fires: one around every read would cost more than the read. Silence is
    counted in its ticks, not read off a clock, which runs on while this process is stopped.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float, pulse: Pulse
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tick = patience / _TICKS
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()
        self._waiting = self._heard = False
        self._beats = pulse.beats
        self._silent = self._unheard = 0
        """Ticks in a row in which nothing came here, and in which the peer was not heard at all."""
        self._stalled = False
        self._timer = self._loop.call_later(self._tick, self._look)

    @classmethod
    async def open(cls, address: Address, patience: float, pulse: Pulse) -> _Connection:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await address.connect()
        except TimeoutError as exc:
            raise Unreachable(f"no connection in {patience:g} seconds") from exc
        return cls(reader, writer, patience, pulse)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self, *, may_end: bool = False) -> bytes:
        """What has arrived; empty only at an end that `may_end` allows."""
        piece = await self._awaited(self._reader.read(65536))
        if not piece and not may_end:
            raise WireError("it was closed")
        return piece

    async def head(self) -> bytes:
        try:
            return await self._awaited(self._reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as exc:
            raise WireError("it was closed") from exc
        except asyncio.LimitOverrunError as exc:
            raise WireError("the head of its answer is too long") from exc

    def close(self) -> None:
        self._timer.cancel()
        self._writer.transport.abort()

    async def _awaited(self, arriving: Coroutine[Any, Any, bytes]) -> bytes:
        piece, self._waiting = b"", True
        try:
            piece = await arriving
        except OSError as exc:
            raise WireError(str(exc) or "it was closed") from exc
        finally:
            self._waiting = False
            if self._stalled and not piece:
                raise Stalled(f"silent for {self._silent * self._tick:g} seconds")
        self._heard = True
        self._pulse.beats += 1
        return piece

    def _look(self) -> None:
        if self._loop.time() - self._timer.when() < _LATE:
            self._count()
        self._stalled = self._unheard >= _TICKS or self._silent >= _TICKS * _BEHIND
        if self._stalled:
            self._writer.transport.abort()
        else:
            self._timer = self._loop.call_later(self._tick, self._look)

    def _count(self) -> None:
        beats = self._pulse.beats
        self._silent = self._silent + 1 if self._waiting and not self._heard else 0
        self._unheard = self._unheard + 1 if self._silent and beats == self._beats else 0
        self._heard, self._beats = False, beats


class _Chunked:
    """Undoes chunked transfer coding; all chunks that arrived together come as one piece."""

    def __init__(self) -> None:
        self._raw = b""
        self.ended = False

    def feed(self, piece: bytes) -> bytes:
        raw = self._raw + piece if self._raw else piece
        done, parts = 0, []
        while not self.ended and (end := raw.find(b"\r\n", done)) >= 0:
            size = _hexadecimal(raw[done:end])
            start = end + 2
            self.ended = size == 0
            if len(raw) < start + size + 2 or self.ended:
                break
            parts.append(raw[start : start + size])
            done = start + size + 2
        self._raw = raw[done:]
        if len(self._raw) > _MAX_BODY:
            raise WireError("a chunk of its answer is too large")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _hexadecimal(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not digits or len(digits) > 8 or digits.translate(None, b"0123456789abcdefABCDEF"):
        raise WireError("its answer is not well-formed HTTP")
    return int(digits, 16)


def _head(address: Address, method: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
    host = address.host if address.socket or address.port in (80, 443) else f"{address.host}:{address.port}"
    lines = [f"{method} {address.prefix}{path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += (
        [f"Content-Type: application/json\r\nContent-Length: {length}"] if length or method == "POST" else []
    )
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _response(connection: _Connection) -> Response:
    head = (await connection.head()).decode("latin-1").split("\r\n")
    version, _, rest = head[0].partition(" ")
    status = rest.split(" ", 1)[0]
    if not version.startswith("HTTP/1.") or len(status) != 3 or not status.isdecimal():
        raise WireError("its answer is not HTTP")
    pairs = (line.partition(":") for line in head[1:] if ":" in line)
    return Response(
        int(status), {name.strip().lower(): value.strip() for name, _, value in pairs}, connection
    )
