"""`rallychat bench page`: an update of ours costs the same in any chat; the usual way finds what has changed."""

from __future__ import annotations

from pathlib import Path

from rallychat.bench.page import run_page
from rallychat.settings import Settings


async def test_both_ways_send_what_has_changed_and_only_one_makes_the_whole_history(tmp_path: Path) -> None:
    rows = await run_page(Settings(data_dir=tmp_path), messages=(2, 100), rounds=1)
    found = {(row["way"], row["messages"]): row for row in rows}
    for way in ("page", "gr.Chatbot"):
        assert found[way, 100]["bytes_per_update"] < 2 * found[way, 2]["bytes_per_update"]
    assert found["gr.Chatbot", 100]["cpu_ms_per_update"] > 4 * found["gr.Chatbot", 2]["cpu_ms_per_update"]
