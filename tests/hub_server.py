"""A Hugging Face hub of the tests' own: one host with repositories, tokens, gates, and a bad connection.

It answers what huggingface_hub asks of `HF_ENDPOINT` for one file: `HEAD` and `GET /{repo}/resolve/{revision}/{file}`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import unquote

from rallychat.catalog.types import HubWeights, Model

CONTENT = b"GGUF" + bytes(range(255)) * 20_000
"""Five megabytes that begin like weights."""
TOKEN = "hf_tests_only"


@dataclass
class Repository:
    """What one repository holds and who may have it."""

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main",)
    access: Literal["public", "gated", "private"] = "public"


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    authorization: str | None
    range: str | None


class HubServer:
    """Use as a context manager; `endpoint` is what HF_ENDPOINT is set to.

    `cuts` lists after how many bytes each of the next answers breaks off; `errors` lists statuses the next
    `GET`s are refused with; a `held` file comes half, and the rest after `release()`.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {"owner/model": Repository({"tiny.gguf": CONTENT})}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.promised_sha256: str | None = None
        self.held = False
        self.half_sent = threading.Event()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
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
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def ranges_asked(self) -> list[str | None]:
        """The range of each GET, in order."""
        return [request.range for request in self.requests if request.method == "GET"]

    def release(self) -> None:
        """Held files go on."""
        self.held = False
        self._released.set()

    def model(
        self,
        repo: str = "owner/model",
        file: str = "tiny.gguf",
        *,
        revision: str = "main",
        sha256: str | None = None,
    ) -> Model:
        """The model whose weights are this file."""
        weights = HubWeights(kind="hub", repo=repo, file=file, revision=revision, sha256=sha256)
        return Model(id=f"hub:{repo}/{file}", name="Tiny", family="shipped", weights=weights)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client was killed or called off

    def _answer(self) -> None:
        path = unquote(self.path)
        authorization = self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, path, authorization, self.headers.get("Range")))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None:
            return self._refuse(404, "")
        if self.command == "GET" and self.hub.errors:
            return self._refuse(self.hub.errors.pop(0), "")
        name, revision, file = found.groups()
        repository = self.hub.repositories.get(name)
        allowed = authorization == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not allowed):
            # the hub does not tell strangers which of the two it is
            return self._refuse(404 if allowed else 401, "RepoNotFound")
        if repository.access == "gated" and not allowed:
            return self._refuse(403 if authorization else 401, "GatedRepo")
        if revision not in repository.revisions:
            return self._refuse(404, "RevisionNotFound")
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound")
        return self._send(repository.files[file])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.hub.ranges else 0
        self.send_response(206 if start else 200)
        digest = self.hub.promised_sha256 or hashlib.sha256(content).hexdigest()
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._body(content[start:])

    def _body(self, rest: bytes) -> None:
        if self.hub.cuts:
            self.wfile.write(rest[: self.hub.cuts.pop(0)])
            self.close_connection = True
            return
        half = len(rest) // 2
        self.wfile.write(rest[:half])
        self.wfile.flush()
        self.hub.half_sent.set()
        if self.hub.held:
            self.hub._released.wait()
        self.wfile.write(rest[half:])
