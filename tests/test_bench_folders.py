"""A measurement has its models and settings from the person who measures, and touches nothing else of theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from rallychat.bench import chaos
from rallychat.bench.chaos import ECHO, run_chaos, world_of
from rallychat.bench.folders import alone, apart
from rallychat.bench.scripted import scripted
from rallychat.bench.server import ServerProcess, running
from rallychat.catalog import Catalog
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings

ELSEWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_folder_apart_has_the_models_of_one_s_own_catalog_and_no_database_but_its_own(
    tmp_path: Path,
) -> None:
    scripted(tmp_path / "mine", "own")
    mine = Settings(data_dir=tmp_path / "mine", database_url=SecretStr(ELSEWHERE), model="own")
    own = apart(mine, folder(tmp_path / "bench"))
    assert Catalog.load(own).resolve("own").name == "Own"
    assert (own.database_url, own.data_dir, own.titles) == (None, tmp_path / "bench", False)
    assert (own.data_dir / "models").is_dir()


def test_chaos_and_soak_have_the_models_of_one_s_own_catalog_and_write_nothing_into_it(
    tmp_path: Path,
) -> None:
    scripted(tmp_path / "mine", "own")
    mine = Settings(data_dir=tmp_path / "mine")
    own = world_of(mine.model_copy(update={"model": "own"}), folder(tmp_path / "bench"))
    echo = world_of(mine.model_copy(update={"model": ECHO}), folder(tmp_path / "echo"))
    assert Catalog.load(own).resolve("own").name == "Own"
    assert Catalog.load(echo).resolve(ECHO).name == ECHO.capitalize()
    assert [path.name for path in (mine.catalog_dir / "models").iterdir()] == ["own.toml"]


async def test_a_server_that_is_measured_knows_nothing_of_a_company_s_database_and_logins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYCHAT_DATABASE_URL", ELSEWHERE)
    monkeypatch.setenv("RALLYCHAT_AUTH", "required")
    (tmp_path / "rallychat.toml").write_text('host = "0.0.0.0"\nuser_requests_per_minute = 1\nslots = 3\n')
    monkeypatch.setenv("RALLYCHAT_CONFIG", str(tmp_path / "rallychat.toml"))
    given = Settings(data_dir=tmp_path)
    scripted(folder(tmp_path / "bench"), ECHO)
    server = ServerProcess(alone(given, tmp_path / "bench"), ECHO)
    assert server._environment["RALLYCHAT_SLOTS"] == "3"  # what is set of the engine is
    async with running(server), httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        answers = [await http.post("/v1/responses", json={"model": ECHO, "input": "Hi"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]


async def test_chaos_in_which_nobody_could_say_anything_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: Any) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(chaos, "_chat", silent)
    monkeypatch.setattr(chaos, "_fail", silent)
    settings = Settings(data_dir=tmp_path, model=ECHO)
    with pytest.raises(EngineUnavailable, match="Nobody could say anything"):
        await run_chaos(settings, minutes=0.1, people=2, seed=1, postgres=False)
