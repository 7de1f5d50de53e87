"""Batches that are gone on with: after a stop, from what a copy holds, and on which machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from rallychat.api import create_app
from rallychat.batches import BatchRunner, runner
from rallychat.chat import ChatService
from rallychat.store.batch_tables import batches
from tests.api_world import echoing, settings
from tests.batch_world import batching, begun, content, ended, jsonl, line, seen, with_slow

SHORT = [line(str(n), "!count 40", model="slow") for n in range(6)]


async def half_done(folder: Path) -> dict[str, Any]:
    """A batch whose server stopped when some of its lines were answered."""
    async with batching(with_slow(folder), slots=1) as (http, _):
        batch = await begun(http, jsonl(SHORT))
        found = await seen(http, batch, lambda it: it["request_counts"]["completed"] > 0)
        assert found["status"] == "in_progress"
    return found


async def assert_complete(http: httpx.AsyncClient, batch: dict[str, Any]) -> None:
    done = await ended(http, batch)
    assert done["status"] == "completed"
    answers = await content(http, done["output_file_id"])
    assert [each["custom_id"] for each in answers] == [each["custom_id"] for each in SHORT]


@pytest.mark.parametrize("lost", [".jsonl.journal", ".jsonl"])
async def test_a_copy_made_amid_the_work_is_gone_on_with(lost: str, tmp_path: Path) -> None:
    batch = await half_done(tmp_path)
    (tmp_path / "batches" / f"{batch['id']}{lost}").unlink()
    async with batching(tmp_path, slots=1) as (http, _):
        await assert_complete(http, batch)


async def test_a_batch_whose_input_is_lost_fails(tmp_path: Path) -> None:
    batch = await half_done(tmp_path)
    (tmp_path / "files" / batch["input_file_id"]).unlink()
    async with batching(tmp_path) as (http, _):
        done = await ended(http, batch)
        assert (done["status"], done["errors"]["data"][0]["code"]) == ("failed", "file_not_found")
    assert list((tmp_path / "batches").iterdir()) == []


async def test_a_server_that_is_being_stopped_leaves_its_batches_to_the_next(tmp_path: Path) -> None:
    async with batching(with_slow(tmp_path), slots=1) as (http, service):
        batch = await begun(http, jsonl(SHORT))
        await seen(http, batch, lambda it: it["request_counts"]["completed"] > 0)
        service.runs.stopping = True  # the grace of `drain`: the next line is refused
        async with asyncio.timeout(60):
            while (await service.store.batches.unfinished())[0].owner is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        runner_here = create_app(service, service.settings).state.batches
        await looked(runner_here)
        (left,) = await service.store.batches.unfinished()
        assert (left.owner, left.status) == (None, "in_progress")
    async with batching(tmp_path, slots=1) as (http, _):
        await assert_complete(http, batch)


# --- several machines, each with its own data folder ----------------------------------------------------------


async def looked(of: BatchRunner) -> None:
    """It has looked once, and done what there was."""
    await of._look()
    await asyncio.gather(*of._tasks.values())


@asynccontextmanager
async def two_machines(
    folder: Path,
) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService, BatchRunner, BatchRunner]]:
    async with echoing(folder / "here") as (http, here), ChatService.open(settings(folder / "far")) as far:
        runners = (create_app(each, each.settings).state.batches for each in (here, far))
        yield http, here, *runners


@pytest.mark.postgres
async def test_a_batch_is_answered_by_the_machine_that_has_its_file(tmp_path: Path) -> None:
    async with two_machines(tmp_path) as (http, _, here, far):
        batch = await begun(http, jsonl([line("a")]))
        await looked(far)
        assert (await http.get(f"/v1/batches/{batch['id']}")).json()["status"] == "validating"
        await looked(here)
        assert (await ended(http, batch))["status"] == "completed"


@pytest.mark.postgres
@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_batch_whose_machine_does_not_come_to_its_end_is_ended_by_another(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_machines(tmp_path) as (http, service, _, far):
        batch = await begun(http, jsonl([line("a")]))
        if how == "cancelled":
            await http.post(f"/v1/batches/{batch['id']}/cancel")
        else:
            async with service.store._database.write() as db:
                past = datetime.now(UTC) - timedelta(seconds=1)
                await db.execute(update(batches).values(expires_at=past))
        await looked(far)
        assert (await http.get(f"/v1/batches/{batch['id']}")).json()["status"] in ("validating", "cancelling")
        monkeypatch.setattr(runner, "ABROAD", timedelta(0))
        await looked(far)
        done = (await http.get(f"/v1/batches/{batch['id']}")).json()
        assert (done["status"], done["errors"]["data"][0]["code"]) == (how, "file_not_found")
