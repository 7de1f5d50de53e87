"""Fixtures that several subjects share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's weights: the file `RALLYCHAT_TEST_GGUF` names, or fetched once into the user's data."""
    if named := os.environ.get("RALLYCHAT_TEST_GGUF"):
        return Path(named)
    from rallychat.catalog.load import Catalog
    from rallychat.settings import Settings
    from rallychat.sources import fetch

    settings = Settings()
    model = Catalog.load(settings).resolve("smollm2-135m-instruct")
    return fetch(model, settings, on_progress=lambda _: None)
