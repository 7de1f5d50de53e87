"""Passwords as Argon2 hashes (argon2-cffi's defaults: RFC 9106, low memory). Hashing takes a core: threads do it."""

from __future__ import annotations

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from rallychat.errors import InvalidRequest

SHORTEST: Final = 10
LONGEST: Final = 256
_HASHER: Final = PasswordHasher()
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="password")
"""Each hash takes a core and 64 MB for a while, whoever asks for it."""


def checked(password: str, *, name: str) -> str:
    """A password that may be chosen.

    Raises:
        InvalidRequest: it is too short, too long, or the name itself.
    """
    if len(password) < SHORTEST:
        raise InvalidRequest(f"A password has at least {SHORTEST} characters.", param="password")
    if len(password) > LONGEST:
        raise InvalidRequest(f"A password has at most {LONGEST} characters.", param="password")
    if password.casefold() == name.casefold() or len(set(password)) < 4:
        raise InvalidRequest("This password is too easily guessed.", param="password", hint="choose another")
    return password


async def hashed(password: str) -> str:
    """What is stored of a password."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _HASHER.hash, _plain(password))


async def fits(stored: str | None, password: str) -> bool:
    """Whether it is the password; takes as long where there is none to compare with."""
    loop = asyncio.get_running_loop()
    good = await loop.run_in_executor(_THREADS, _verified, stored, password[: LONGEST + 1])
    return good and stored is not None


def is_outdated(stored: str) -> bool:
    """It was hashed with other parameters than today's."""
    return _HASHER.check_needs_rehash(stored)


def _verified(stored: str | None, password: str) -> bool:
    try:
        return _HASHER.verify(stored or _nobody_s(), _plain(password))
    except (Argon2Error, InvalidHashError):
        return False


@cache
def _nobody_s() -> str:
    return _HASHER.hash("nobody's")


def _plain(password: str) -> bytes:
    """The same bytes however a keyboard composes its letters."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
