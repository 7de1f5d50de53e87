"""What is open to whom: paths that ask nobody, and what an API key must be for. A path not named here wants `admin`."""

from __future__ import annotations

from typing import Final

OPEN: Final = frozenset({"/healthz", "/readyz", "/openapi.json", "/login", "/logout", "/favicon.ico"})
"""Paths that everybody may ask for. What they show is the same for all."""
OPEN_BELOW: Final = ("/ui/static/", "/invite/", "/login/", "/share/")

ANY: Final = "any"
_SCOPES: Final = (
    ("/v1/chat", "chat"),
    ("/v1/completions", "chat"),
    ("/v1/embeddings", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/conversations", "conversations"),
    ("/v1/personas", "conversations"),
    ("/v1/files", "files"),
    ("/v1/batches", "batches"),
    ("/v1/models", ANY),
    ("/v1/me", ANY),
)


def is_open(path: str) -> bool:
    """Nobody has to say who they are."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def scope_of(path: str) -> str:
    """What a key must be for to be used here; `ANY`: it does not matter."""
    return next((scope for at, scope in _SCOPES if path == at or path.startswith(f"{at}/")), "admin")
