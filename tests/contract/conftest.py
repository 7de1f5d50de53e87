"""The engines the contract is held against, each one worker for all tests of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.rig import ENGINES, Rig, rig_of, spec_of


@pytest.fixture(scope="session", params=ENGINES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig_of(spec_of(request, prefill_ms=10, delay_ms=2)) as ready:
        yield ready


@pytest.fixture(params=ENGINES)
def doomed_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A worker of the test's own, to be killed."""
    with rig_of(spec_of(request, delay_ms=2)) as ready:
        yield ready
