"""The soak's table: what grows has a slope, what is flat has none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rallychat.bench import soak
from rallychat.bench.chaos import ECHO, called_off
from rallychat.settings import Settings


def test_what_grows_has_a_slope_and_what_warms_up_has_none() -> None:
    looks = [(at * 36.0, {"leak_mb": 100.0 + at, "warm_mb": min(at, 20) * 1.0}) for at in range(100)]
    first, second = soak.rows(looks[0][1], looks, {"leak_mb": 199.0, "warm_mb": 0.0})
    assert (first["slope_per_hour"], first["most"], first["after"]) == (100, 199, 199)
    assert (second["slope_per_hour"], second["warm"], second["last"], second["after"]) == (0, 20, 20, 0)


async def test_a_person_who_fails_when_all_are_going_is_not_overlooked() -> None:
    async def failing() -> None:
        raise RuntimeError("not the server's fault")

    task = asyncio.create_task(failing())
    await asyncio.wait({task})
    with pytest.raises(RuntimeError):
        await called_off([task])


@pytest.mark.timeout(180)
async def test_when_everybody_has_gone_nothing_is_busy(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", model=ECHO)
    image = tmp_path / "memory.png"
    table = {
        row["measure"]: row
        for row in await soak.run_soak(settings, minutes=0.1, users=3, image=image, tell=lambda _: None)
    }
    assert [table[name]["after"] for name in ("runs", "slots_busy", "queue_length", "workers")] == [
        0,
        0,
        0,
        1,
    ]
    assert table["server_mb"]["most"] > 50
    assert table["answers"]["after"] >= 3
    assert [table[name]["after"] for name in ("failed", "gaps", "repeats", "stuck", "refused", "cut")] == [
        0
    ] * 6
    assert image.stat().st_size > 1000
