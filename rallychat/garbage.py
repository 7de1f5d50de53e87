"""Python's own pauses: a collection of all objects takes a tenth of a second where page, API and store are loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle() -> None:
    """What is there by now stays: later collections need not walk it while somebody waits for a word.

    Call once, when everything is loaded.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def settled() -> Iterator[None]:
    """The same, until the block ends."""
    settle()
    try:
        yield
    finally:
        gc.unfreeze()
