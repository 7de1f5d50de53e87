"""What operators see of answers and engines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rallychat.metrics import Metrics
from rallychat.pool import Engine, Pool
from tests.api_world import chat, echoing

ROOT = Path(__file__).parent.parent
SECRET = "the-password-is-hunter2"


def samples(text: str) -> dict[str, float]:
    """Value by name and labels, histograms by their counts and sums."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


async def test_an_answer_is_counted_with_its_tokens_and_times(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, _):
        first = (await http.post("/v1/chat/completions", json=chat(SECRET))).json()["usage"]
        again = (await http.post("/v1/chat/completions", json=chat(SECRET))).json()["usage"]
        response = await http.get("/metrics")
    seen = samples(response.text)
    cached = again["prompt_tokens_details"]["cached_tokens"]
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert cached > 0
    assert seen["rallychat_answers_total['echo', 'stop']"] == 2
    assert seen["rallychat_tokens_total['cached', 'echo']"] == cached
    prompts = first["prompt_tokens"] + again["prompt_tokens"]
    assert seen["rallychat_tokens_total['echo', 'evaluated']"] == prompts - cached
    written = first["completion_tokens"] + again["completion_tokens"]
    assert seen["rallychat_tokens_total['echo', 'generated']"] == written
    assert seen["rallychat_first_token_seconds_count['echo']"] == 2
    assert (
        0 < seen["rallychat_first_token_seconds_sum['echo']"] <= seen["rallychat_answer_seconds_sum['echo']"]
    )


async def test_every_metric_is_in_the_docs_and_the_docs_name_no_other() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    table = text.split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    families = Metrics(cast(Pool, NoEngines())).registry.collect()
    there = [f"{each.name}_total" if each.type == "counter" else each.name for each in families]
    assert sorted(documented) == sorted(there)


class NoEngines:
    """A pool in which nothing is loaded."""

    def engines(self) -> list[Engine]:
        return []


async def test_how_the_engines_stand_is_told(tmp_path: Path) -> None:
    async with echoing(tmp_path, slots=3) as (http, _):
        before = samples((await http.get("/metrics")).text)
        await http.post("/v1/chat/completions", json=chat())
        after = samples((await http.get("/metrics")).text)
    assert not any("'echo'" in name for name in before)
    assert [after[f"rallychat_{what}['echo']"] for what in ("slots", "slots_busy", "queue_length")] == [
        3,
        0,
        0,
    ]
    assert (after["rallychat_engine_up['echo']"], after["rallychat_engine_restarts_total['echo']"]) == (1, 0)


async def test_no_word_of_a_person_is_in_the_metrics(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, _):
        await http.post("/v1/chat/completions", json=chat(SECRET))
        text = (await http.get("/metrics")).text
    assert SECRET not in text


async def test_an_answer_that_fails_is_counted_under_its_code(tmp_path: Path) -> None:
    async with echoing(tmp_path, window=256) as (http, _):
        refused = await http.post("/v1/chat/completions", json=chat("word " * 2000))
        seen = samples((await http.get("/metrics")).text)
    code = refused.json()["error"]["code"]
    assert seen[f"rallychat_answers_total{sorted(['echo', code])}"] == 1
    assert not any(name.startswith("rallychat_tokens") for name in seen)


async def test_who_gives_up_in_line_has_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallychat.pool.line.Pace.over", lambda *_: False)
    async with echoing(tmp_path, slots=1) as (http, service):
        await http.post("/v1/chat/completions", json=chat())
        (engine,) = service.pool.engines()
        before = samples((await http.get("/metrics")).text)["rallychat_queue_seconds_sum['echo']"]
        async with engine.slot([1]):
            late = await http.post("/v1/chat/completions", json=chat() | {"timeout": 0.2})
        seen = samples((await http.get("/metrics")).text)
    assert late.json()["error"]["code"] == "queue_timeout"
    assert seen["rallychat_queue_seconds_count['echo']"] == 2
    assert seen["rallychat_queue_seconds_sum['echo']"] - before >= 0.2


async def test_a_foreign_page_cannot_read_them(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, _):
        refused = await http.get("/metrics", headers={"host": "evil.example"})
    assert refused.status_code == 403


@pytest.mark.parametrize("path", ["/metrics", "/metrics?x=1"])
async def test_nothing_can_be_posted_there(tmp_path: Path, path: str) -> None:
    async with echoing(tmp_path) as (http, _):
        assert (await http.post(path)).status_code == 405


async def test_the_dashboard_asks_for_metrics_and_labels_that_exist(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, service):
        await http.post("/v1/chat/completions", json=chat())
        service.metrics.compacted("echo")
        text = (await http.get("/metrics")).text
    known = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for expr in asked for name in re.findall(r"rallychat_\w+", expr)}
    labels = {
        label
        for expr in asked
        for found in re.findall(r"\{([^}]*)\}", expr)
        for label in re.findall(r"(\w+)=", found)
    }
    assert named <= set(known)
    assert labels <= set.union(*known.values())
