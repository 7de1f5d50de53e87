"""Meaning as vectors: who makes them. The one place that knows `wordllama`, whose wheel carries its weights.

Static embeddings: each token has a vector, a text is their mean. No model runs, so a message takes a tenth of a
millisecond; in return they know words that mean alike, and nothing of how a sentence is built.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rallychat.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Turns texts into vectors. Must give the same vector for the same text; may be called from any thread."""

    @property
    def name(self) -> str:
        """As reports name it."""

    def knows(self, text: str) -> bool:
        """Whether its vectors mean anything for a text in this language."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row of length 1 for each text, or of zeros where there is nothing in it."""


class WordLlama:
    """`wordllama`: 256 numbers a token, from the tokens of a large English model."""

    name = "wordllama"

    def __init__(self) -> None:
        self._model = _load()

    def knows(self, text: str) -> bool:
        """Texts in Latin letters: others fall to pieces in its vocabulary, and look alike whatever they say."""
        letters = [char for char in text if char.isalpha()]
        return bool(letters) and sum([char < "ɐ" for char in letters]) >= 0.9 * len(letters)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `Embedder` says. Texts of one length at a time: a batch is as wide as its longest."""
        import numpy as np

        there = [at for at in range(len(texts)) if texts[at].strip()]
        order = sorted(there, key=lambda at: len(texts[at]))
        found = np.zeros((len(texts), self._model.embedding.shape[1]), dtype=np.float32)
        if order:
            found[order] = self._model.embed([texts[at] for at in order], batch_size=16)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found


def _load() -> Any:
    """The model in its wheel. The package sets up logging for the whole process; that is taken back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        import wordllama
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    # Its own search looks beside the folder where the wheel has the tokenizer, and then asks the hub for it.
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


_registered: Embedder | None = None


def register_embedder(embedder: Embedder | None) -> None:
    """Search by the meaning that these vectors have, in place of our own; None takes that back."""
    global _registered
    _registered = embedder


def installed() -> bool:
    """There is something to make vectors with."""
    return _registered is not None or find_spec("wordllama") is not None


def embedder() -> Embedder:
    """What makes the vectors; loaded on first use, which takes most of a second.

    Raises:
        SettingsError: nothing does.
    """
    return _registered or _own()


_loading = threading.Lock()


def _own() -> Embedder:
    with _loading:
        return _cached()


@cache
def _cached() -> Embedder:
    try:
        return WordLlama()
    except ImportError as exc:
        raise SettingsError(
            "Search by meaning needs static embeddings, which are not installed.",
            hint="pip install 'rallychat[embed]', or set retrieval to auto",
        ) from exc
