"""The engines the contract is held against, each one worker for all tests of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.rig import Rig, real_spec, rig_of, scripted_spec


@pytest.fixture(scope="session", params=["echo", pytest.param("llamacpp", marks=pytest.mark.real)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    spec = scripted_spec(prefill_ms=10, delay_ms=2) if request.param == "echo" else real_spec(request)
    with rig_of(spec) as ready:
        yield ready


@pytest.fixture(params=["echo", pytest.param("llamacpp", marks=pytest.mark.real)])
def doomed_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A worker of the test's own, to be killed."""
    spec = scripted_spec(delay_ms=2) if request.param == "echo" else real_spec(request)
    with rig_of(spec) as ready:
        yield ready
