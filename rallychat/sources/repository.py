"""A hub repository at one commit: its files, and the small ones among them read into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from rallychat.catalog.repository import Said
from rallychat.errors import SourceError
from rallychat.sources import hub

LARGEST_READ: Final = 64 * 2**20
"""Bytes above which a file is not read into memory."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """One file: its bytes and the checksum the hub promises, SHA-256 or git's own."""

    name: str
    size: int | None
    sha256: str | None
    git_id: str | None


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository at one commit. Made by `look_at`."""

    repo: str
    revision: str
    """As it was asked for; sentences name it."""
    commit: str
    files: Mapping[str, RepositoryFile]
    token: str | None = field(repr=False)
    license: str = ""
    parameters: int | None = None
    gated: bool = False
    _read: dict[str, bytes | None] = field(default_factory=dict, repr=False)

    @property
    def said(self) -> Said:
        """What its small files say of it; each is asked for once."""
        return Said(self.read)

    def read(self, name: str) -> bytes | None:
        """The content of a small file, or None if there is none. Blocks.

        Raises:
            SourceError: the hub does not give it.
        """
        if name not in self._read:
            known = self.files.get(name)
            self._read[name] = None if known is None or (known.size or 0) > LARGEST_READ else self._get(name)
        return self._read[name]

    def remote(self, name: str) -> hub.Remote:
        """A file, ready to be received."""
        known = self.files[name]
        version = f"{known.sha256 or known.git_id or self.commit}"[:16]
        git_id = known.git_id if known.size is not None else None
        return hub.Remote(self._url(name), hub.headers(self.token), known.size, known.sha256, version, git_id)

    def size(self, names: Iterable[str]) -> int:
        """Bytes of these files together."""
        return sum(self.files[name].size or 0 for name in names)

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repo, name, revision=self.commit, endpoint=hub.endpoint())

    def _get(self, name: str) -> bytes:
        def ask() -> bytes:
            answer = get_session().get(
                self._url(name), headers=hub.headers(self.token), timeout=hub.TIMEOUT, follow_redirects=True
            )
            hf_raise_for_status(answer)
            return bytes(answer.content)

        with hub.sentences(self.repo, name, revision=self.revision, what=self.repo):
            return patiently(ask)


def look_at(repo: str, *, revision: str = "main", token: str | None) -> Repository:
    """Ask the hub what it has under this name. Blocks.

    Raises:
        SourceError: there is no such repository or revision, it is gated, or the hub cannot be reached.
    """
    api = HfApi(endpoint=hub.endpoint(), library_name="rallychat")
    with hub.sentences(repo, "", revision=revision, what=repo):
        try:
            info = patiently(
                lambda: api.model_info(
                    repo, revision=revision, files_metadata=True, token=token, timeout=hub.TIMEOUT
                )
            )
            return _repository(info, repo, revision, token)
        except (LookupError, TypeError, AttributeError) as exc:
            raise SourceError(f"The hub's answer for {repo} is not understood: {exc!r}.") from exc


def patiently(ask: Callable[[], Answer]) -> Answer:
    """The answer, asked for again where the connection breaks or the hub stumbles."""
    for pause in hub.PATIENCE[1:]:
        try:
            return ask()
        except httpx2.TransportError:
            pass
        except HfHubHTTPError as exc:
            if exc.response is None or exc.response.status_code not in hub.STUMBLES:
                raise
        time.sleep(pause)
    return ask()


def _repository(info: Any, repo: str, revision: str, token: str | None) -> Repository:
    card = info.card_data or {}
    weights = info.safetensors
    return Repository(
        repo=repo,
        revision=revision,
        commit=info.sha or quote(revision, safe=""),
        files={each.rfilename: _file(each) for each in info.siblings or ()},
        token=token,
        license=str(card.get("license") or ""),
        parameters=weights.total if weights else None,
        gated=bool(info.gated),
    )


def _file(sibling: Any) -> RepositoryFile:
    large = sibling.lfs
    return RepositoryFile(
        sibling.rfilename,
        large.size if large else sibling.size,
        large.sha256 if large else None,
        None if large else sibling.blob_id,
    )
