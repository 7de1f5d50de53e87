"""Fixtures that several subjects share."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from rallychat.store import sqlite
from tests import postgres
from tests.nursery import POSSIBLE, Nursery, popen

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # a slow one fails no test

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; commands inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_url(worker_id: str) -> Iterator[str | None]:
    """A database of this test worker's own on the server `RALLYCHAT_TEST_DATABASE_URL` names, if it does."""
    if (server := os.environ.get("RALLYCHAT_TEST_DATABASE_URL")) is None:
        yield None
        return
    with postgres.database(server, f"rallychat_{worker_id}") as url:
        yield url


@pytest.fixture(autouse=True)
def database(postgres_url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with an empty database: SQLite in its folder, or PostgreSQL where a server is named."""
    if postgres_url is not None:
        postgres.empty(postgres_url)
        monkeypatch.setenv("RALLYCHAT_DATABASE_URL", postgres_url)


@pytest.fixture(scope="session")
def todays_schema(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The SQLite file that the migrations make of nothing: the same each time, so they run once."""
    file = tmp_path_factory.mktemp("schema") / "rallychat.db"

    async def migrated() -> None:
        made = sqlite.SqliteDatabase(file, busy_timeout=5)
        await made.prepare()
        await made.aclose()

    asyncio.run(migrated())
    return file.read_bytes()


@pytest.fixture(autouse=True)
def new_files_are_migrated(
    request: pytest.FixtureRequest, todays_schema: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new SQLite file begins as a copy of a migrated one, unless the test is marked `migrates`."""
    if request.node.get_closest_marker("migrates"):
        return
    create_file = sqlite.create_file

    def create_migrated(path: Path) -> None:
        is_new = not path.exists()
        create_file(path)
        if is_new:
            path.write_bytes(todays_schema)

    monkeypatch.setattr(sqlite, "create_file", create_migrated)


@pytest.fixture(scope="session")
def quick_popen() -> Iterator[type[subprocess.Popen[Any]]]:
    """`subprocess.Popen` whose engine workers start at once."""
    nursery = Nursery()
    yield popen(nursery)
    nursery.close()


@pytest.fixture(autouse=True)
def workers_start_at_once(
    request: pytest.FixtureRequest,
    quick_popen: type[subprocess.Popen[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is not engines that are tested."""
    is_real = any(request.node.get_closest_marker(name) for name in ("real", "hf"))
    if POSSIBLE and not is_real and "contract" not in request.path.parts:
        monkeypatch.setattr(subprocess, "Popen", quick_popen)


@pytest.fixture(autouse=True)
def engines_take_one_core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where engines compute: on a machine that is busy, threads that wait for one another burn most of the time."""
    if any(request.node.get_closest_marker(name) for name in ("real", "hf")):
        monkeypatch.setenv("RALLYCHAT_THREADS", "1")


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


@pytest.fixture(scope="session")
def taught_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that speaks in sentences, made once per run."""
    from tests import checkpoints

    return checkpoints.llama(tmp_path_factory.mktemp("taught") / "llama", taught=True)


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as a Hugging Face checkpoint: its GGUF's weights, widened to 32 bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests import checkpoints

    folder = tmp_path_factory.mktemp("smollm2")
    source = {"gguf_file": smollm2_gguf.name}
    with checkpoints.one_thread():
        model = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, dtype=torch.float32, **source)
    config = type(model.config)(**{**model.config.to_dict(), "quantization_config": None})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # they are not quantised any more
    plain.load_state_dict(model.state_dict())
    del plain.config.quantization_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_gguf.parent, **source).save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `hf` need the extra: without it they are skipped, and the summary says why."""
    if "RALLYCHAT_TEST_DATABASE_URL" in os.environ:
        other = [item for item in items if item.get_closest_marker("sqlite")]
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]
    else:
        for item in items:
            if item.get_closest_marker("postgres"):
                reason = "no PostgreSQL named: .ci/postgres ./rally test -m postgres"
                item.add_marker(pytest.mark.skip(reason=reason))
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        for item in items:
            if item.get_closest_marker("hf"):
                item.add_marker(pytest.mark.skip(reason=f"no {missing[0]} here: ./rally add hf"))
