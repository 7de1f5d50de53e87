"""A Hugging Face hub of the tests' own: one host with repositories, tokens, gates, and a bad connection.

It answers what huggingface_hub asks of `HF_ENDPOINT`: `GET /api/models/{repo}/revision/{revision}` for what there is,
`HEAD` and `GET /{repo}/resolve/{revision}/{file}` for one file; large ones are redirected to `/cdn/…`, as the hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import quote, unquote, urlsplit

import pytest
from huggingface_hub import close_session

from rallychat.catalog.types import HubWeights, Model
from rallychat.sources import hub

CONTENT = b"GGUF" + bytes(range(255)) * 20_000
"""Five megabytes that begin like weights."""
TOKEN = "hf_tests_only"
COMMIT: Final = "c" * 40
LARGE: Final = (".safetensors", ".gguf", ".bin", ".model")
"""Endings of files that the hub keeps apart from git, with a SHA-256."""


@dataclass
class Repository:
    """What one repository holds and who may have it."""

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main",)
    access: Literal["public", "gated", "private"] = "public"
    license: str = ""
    parameters: int | None = None
    commit: str = COMMIT

    @classmethod
    def of(cls, folder: Path, **given: Any) -> Repository:
        """Everything below a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **given)

    def described(self, name: str) -> dict[str, Any]:
        """As the hub's API says it."""
        return {
            "id": name,
            "sha": self.commit,
            "gated": "manual" if self.access == "gated" else False,
            "private": self.access == "private",
            "cardData": {"license": self.license} if self.license else {},
            "siblings": [_sibling(file, content) for file, content in self.files.items()],
        } | ({"safetensors": {"parameters": {}, "total": self.parameters}} if self.parameters else {})


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    git_id = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    told = {"rfilename": name, "size": len(content), "blobId": git_id}
    return told | ({"lfs": large} if name.endswith(LARGE) else {})


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    redirected: bool = False


class HubServer:
    """Use as a context manager; `endpoint` is what HF_ENDPOINT is set to.

    `cuts` lists after how many bytes each of the next answers breaks off; `errors` lists statuses the next
    `GET`s are refused with; a `held` file (all, or the one of the name `held_file`) comes half, and the rest after
    `release()`; `damaged` files come with other bytes than were promised.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {"owner/model": Repository({"tiny.gguf": CONTENT})}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.redirects = True
        self.promised_sha256: str | None = None
        self.held = False
        self.held_file = ""
        self.damaged: dict[str, bytes] = {}
        self.half_sent = threading.Event()
        self._halves: dict[str, threading.Event] = {}
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
        """The range of each GET that was answered with a file's bytes, in order."""
        asked = [each for each in self.requests if each.method == "GET"]
        return [each.range for each in asked if not each.path.startswith("/api/") and not each.redirected]

    @property
    def fetched(self) -> list[str]:
        """The path of each GET of a file, redirects counted once, in order."""
        asked = [each for each in self.requests if each.method == "GET"]
        return [each.path for each in asked if not each.path.startswith(("/api/", "/cdn/"))]

    def half_sent_of(self, file: str, timeout: float) -> bool:
        """Waits until the first half of a file was sent."""
        return self._halves.setdefault(file, threading.Event()).wait(timeout)

    def release(self) -> None:
        """Held files go on."""
        self.held = False
        self.held_file = ""
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


@contextmanager
def hub_in_place(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A hub that is asked in place of the real one, without patience and with nothing of this machine's user."""
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hub, "PATIENCE", (0.0, 0.0))
    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running
        close_session()


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
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization")
        request = Request(self.command, unquote(path), authorization, self.headers.get("Range"))
        self.hub.requests.append(request)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        if about is not None:
            return self._describe(about[1], unquote(about[2] or "main"), authorization)
        found = re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None:
            return self._refuse(404, "")
        if self.command == "GET" and self.hub.errors:
            return self._refuse(self.hub.errors.pop(0), "")
        name, revision, file = map(unquote, found.groups())
        repository = self.hub.repositories.get(name)
        allowed = authorization == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not allowed):
            # the hub does not tell strangers which of the two it is
            return self._refuse(404 if allowed else 401, "RepoNotFound")
        if repository.access == "gated" and not allowed:
            return self._refuse(403 if authorization else 401, "GatedRepo")
        if revision not in (*repository.revisions, repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound")
        if (
            self.command == "GET"
            and self.hub.redirects
            and file.endswith(LARGE)
            and not path.startswith("/cdn")
        ):
            request.redirected = True
            return self._redirect(f"/cdn{path}")
        return self._send(file, repository.files[file])

    def _describe(self, name: str, revision: str, authorization: str | None) -> None:
        repository = self.hub.repositories.get(name)
        allowed = authorization == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not allowed):
            return self._refuse(404 if allowed else 401, "RepoNotFound")
        if revision not in (*repository.revisions, repository.commit):
            return self._refuse(404, "RevisionNotFound")
        return self._say(json.dumps(repository.described(name)).encode())

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.hub.endpoint}{quote(unquote(path))}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: str, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.hub.ranges else 0
        self.send_response(206 if start else 200)
        digest = self.hub.promised_sha256 or hashlib.sha256(content).hexdigest()
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._body(file, self.hub.damaged.get(file, content)[start:])

    def _body(self, file: str, rest: bytes) -> None:
        if self.hub.cuts:
            self.wfile.write(rest[: self.hub.cuts.pop(0)])
            self.close_connection = True
            return
        half = len(rest) // 2
        self.wfile.write(rest[:half])
        self.wfile.flush()
        self.hub.half_sent.set()
        self.hub._halves.setdefault(file, threading.Event()).set()
        if self.hub.held or self.hub.held_file == file:
            self.hub._released.wait()
        self.wfile.write(rest[half:])
