"""One file of a Hugging Face hub repository, in pieces that survive: what has arrived is kept and continued.

`huggingface_hub` says where the file is, who may have it and what its checksum is; the bytes come through its
own HTTP session, so `HF_ENDPOINT`, proxies and tokens are the user's. We write them ourselves because its
`hf_hub_download` throws away what had arrived when it is called off or the connection breaks for good.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

import httpx2
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from rallychat.catalog.types import HubWeights
from rallychat.disk import appear, settle
from rallychat.errors import ChecksumMismatch, Gated, NoNetwork, SourceError, SourceMissing
from rallychat.sources.files import CHUNK, check_magic, check_sum, is_full, need_room
from rallychat.sources.progress import Delivery

PATIENCE = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try of a connection that broke; the count starts anew when bytes arrive."""
TIMEOUT = 30.0
"""Seconds of silence after which a connection counts as broken."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
STUMBLES = {408, 429, 500, 502, 503, 504}
"""What a server answers that may answer better in a moment."""


@dataclass(frozen=True)
class Remote:
    """One file as the hub describes it."""

    url: str
    headers: dict[str, str]
    size: int | None
    sha256: str | None
    version: str
    """Changes when the file does; names the part file, so that no two versions are mixed."""
    git_id: str | None = None
    """What git calls its content (if `size` is known); the hub's only checksum of a small file."""


class _Broken(Exception):
    """The connection broke or the server stumbled; worth another try."""


class _Part:
    """What has arrived so far, on disk and in the checksum."""

    def __init__(self, path: Path, remote: Remote, delivery: Delivery) -> None:
        self.path = path
        self._remote = remote
        self._file: BinaryIO = path.open("ab")
        self._digest = _digest(remote)
        size = self._file.tell()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._digest.update(chunk)
                delivery.report(file.tell(), size, "verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        return self._file.tell()

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = _digest(self._remote)

    def settle(self) -> None:
        settle(self._file)

    def give_up(self) -> None:
        with suppress(OSError):  # what could not be flushed is not wanted either
            self._file.close()
        self.path.unlink(missing_ok=True)


def fetch(weights: HubWeights, delivery: Delivery, *, token: str | None) -> None:
    """Download the file, verify it and let it appear at the target.

    A part left by an earlier try is continued. `token` None uses the one huggingface_hub knows of
    (HF_TOKEN or a login).
    """
    with sentences(weights.repo, weights.file, revision=weights.revision, what=delivery.what):
        remote = _look_up(weights, token)
        receive(remote, delivery, check=partial(check_magic, f"{weights.repo}/{weights.file}"))


def receive(remote: Remote, delivery: Delivery, *, check: Callable[[Path], None] = lambda _: None) -> None:
    """Bring one file, verify it (`check` has the last word), and let it appear at the target."""
    path = _room_for_part(remote, delivery)
    with _Part(path, remote, delivery) as part:
        _receive(remote, part, delivery)
        arrived, checksum = part.size, part.checksum
    try:
        if remote.size is not None and arrived != remote.size:
            raise ChecksumMismatch(f"{delivery.what} has {arrived} bytes where {remote.size} were promised.")
        if expected := remote.sha256 or remote.git_id:
            check_sum(delivery.what, expected=expected, actual=checksum)
        check(path)
    except SourceError:
        path.unlink()  # continuing it would never heal it
        raise
    appear(path, delivery.target)
    with suppress(OSError):
        delivery.work.rmdir()


@contextmanager
def sentences(repo: str, file: str, *, revision: str, what: str) -> Iterator[None]:
    """Turns what the hub, or the way to it, refuses into one sentence."""
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, FileMetadataError) as exc:
        raise _translated(exc, repo, file, revision) from exc
    except (httpx2.TransportError, _Broken) as exc:
        raise NoNetwork(
            f"The connection to the hub failed while {what} was downloaded.", hint=_hint(exc)
        ) from exc


def endpoint() -> str | None:
    """The hub in use; read each time, as huggingface_hub reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def headers(token: str | None) -> dict[str, str]:
    """What every request carries. Ranges and checksums are of the file itself, so nothing may be compressed."""
    return build_hf_headers(token=token, library_name="rallychat") | {"Accept-Encoding": "identity"}


def _digest(remote: Remote) -> hashlib._Hash:
    """A fresh checksum of the kind the hub promised: SHA-256, or git's own of a file it keeps itself."""
    if remote.sha256 or not remote.git_id:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)


def _look_up(weights: HubWeights, token: str | None) -> Remote:
    url = hf_hub_url(weights.repo, weights.file, revision=weights.revision, endpoint=endpoint())
    metadata = get_hf_file_metadata(url, token=token, library_name="rallychat", endpoint=endpoint())
    etag = metadata.etag or "unknown"
    promised = weights.sha256 or (etag if _SHA256.fullmatch(etag) else None)
    version = hashlib.sha256(f"{url} {etag}".encode()).hexdigest()[:16]
    return Remote(url, headers(token), metadata.size, promised, version)


def _room_for_part(remote: Remote, delivery: Delivery) -> Path:
    """Where the part is or will be; parts of other versions are gone, and there is room for the rest."""
    delivery.work.mkdir(parents=True, exist_ok=True)
    path = delivery.work / f"{remote.version}.part"
    for other in delivery.work.iterdir():
        if other != path:
            other.unlink()
    if remote.size is not None:
        arrived = path.stat().st_size if path.exists() else 0
        if arrived > remote.size:
            path.unlink()
            arrived = 0
        need_room(delivery.what, delivery.target.parent, remote.size - arrived)
    return path


def _receive(remote: Remote, part: _Part, delivery: Delivery) -> None:
    """Everything the hub has of the file is in `part` when this returns."""
    try:
        _receive_patiently(remote, part, delivery)
        part.settle()
    except OSError as exc:
        if is_full(exc):  # others need the disk too, the conversations before all
            part.give_up()
        raise


def _receive_patiently(remote: Remote, part: _Part, delivery: Delivery) -> None:
    tries = 0
    while remote.size is None or part.size < remote.size:
        before = part.size
        try:
            _stream(remote, part, delivery)
            if remote.size is None:
                break
            if part.size < remote.size:
                raise _Broken("the stream ended early")
        except (httpx2.TransportError, _Broken):
            part.settle()
            tries = 1 if part.size > before else tries + 1
            if tries > len(PATIENCE):
                raise
            _pause(PATIENCE[tries - 1], delivery)


def _stream(remote: Remote, part: _Part, delivery: Delivery) -> None:
    asked = {**remote.headers, "Range": f"bytes={part.size}-"} if part.size else remote.headers
    with get_session().stream(
        "GET", remote.url, headers=asked, timeout=TIMEOUT, follow_redirects=True
    ) as response:
        if response.status_code in STUMBLES:
            raise _Broken(f"the hub answered {response.status_code}")
        hf_raise_for_status(response)
        if part.size and response.status_code != 206:
            part.restart()  # the server sends the whole file, whatever was asked
        for chunk in response.iter_bytes():  # as it comes: what a break takes back is little
            part.add(chunk)
            delivery.report(part.size, remote.size, "download")


def _pause(seconds: float, delivery: Delivery) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        delivery.check()
        time.sleep(min(0.1, seconds))


def _hint(exc: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return "its certificate is not trusted here: set SSL_CERT_FILE to one that is, or check the proxy"
    return "check the connection and try again; what has arrived is kept and continued"


def _translated(exc: Exception, repo: str, file: str, revision: str) -> SourceError:
    """What the hub's answer means; most specific first, as a gated repository is also a missing one."""
    status = (
        exc.response.status_code if isinstance(exc, HfHubHTTPError) and exc.response is not None else None
    )
    page = f"https://huggingface.co/{repo}"
    if isinstance(exc, OfflineModeIsEnabled):
        return NoNetwork(f"HF_HUB_OFFLINE forbids downloading {repo}/{file}.", hint="unset it and try again")
    if isinstance(exc, GatedRepoError):
        return Gated(
            f"{repo} is gated: its authors want you to accept their terms.",
            hint=f"accept them at {page} and set RALLYCHAT_HUB_TOKEN or HF_TOKEN",
        )
    if isinstance(exc, RevisionNotFoundError):
        return SourceMissing(f"The hub repository {repo} has no revision '{revision}'.")
    if isinstance(exc, EntryNotFoundError):
        return SourceMissing(
            f"The hub repository {repo} has no file '{file}'.",
            hint=f"its files are listed at {page}/tree/main",
        )
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403):
        if status == 404:
            return SourceMissing(f"The hub has no repository '{repo}'.")
        return Gated(
            f"The hub does not show {repo}: it does not exist, or wants a token that may read it.",
            hint="check the name, then set RALLYCHAT_HUB_TOKEN or HF_TOKEN",
        )
    if isinstance(exc, HFValidationError):
        return SourceMissing(f"'{repo}' is not a name a hub repository can have.")
    if isinstance(exc, HfHubHTTPError) and status is not None:
        return NoNetwork(f"The hub answered {status} for {repo}/{file}.", hint="try again later")
    return SourceError(f"The hub's answer for {repo}/{file} is not understood: {exc}.")
