"""`rallychat bench hf` on a shape small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from rallychat.bench.hf import run_hf
from rallychat.errors import InvalidRequest

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]


async def test_it_measures_the_engine_and_plain_generate_on_the_same_checkpoint(tmp_path: Path) -> None:
    rows = await run_hf(
        shape="tiny",
        users=[1, 3],
        prompt=20,
        max_tokens=4,
        arms=["merged", "generate"],
        dtype="float32",
        rounds=1,
        folder=tmp_path,
    )
    assert [(row["arm"], row["users"]) for row in rows] == [
        ("rallychat, LoRA merged", 1),
        ("rallychat, LoRA merged", 3),
        ("generate, LoRA not merged", 1),
    ]
    assert all(row["tokens_per_s"] > 0 and row["first_ms"] > 0 for row in rows)


@pytest.mark.parametrize("wrong", [{"shape": "enormous"}, {"arms": ["by-hand"]}])
async def test_what_cannot_be_measured_is_refused_with_what_can(wrong: dict[str, object]) -> None:
    asked = {"shape": "tiny", "users": [1], "prompt": 8, "max_tokens": 2} | wrong
    with pytest.raises(InvalidRequest, match="there are"):
        await run_hf(**asked)  # type: ignore[arg-type]
