"""Secrets of 256 random bits, stored as their SHA-256: nobody guesses so many bits, so nothing slower is needed."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

KEY: Final = "rally_"
"""What API keys begin with, so that scanners of leaked secrets know them."""
SHOWN: Final = len(KEY) + 6
"""Characters of a key that may be shown."""


def fresh(prefix: str = "") -> str:
    """A new secret."""
    return prefix + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """What is stored of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
