from __future__ import annotations

from pathlib import Path

from tests.checkpoint_files import TEMPLATE, checkpoint_files
from tests.test_bring_your_own import written
from tests.test_ui_routes import page


async def test_a_folder_that_says_everything_is_a_model_at_once(tmp_path: Path) -> None:
    folder = written(checkpoint_files(template=TEMPLATE), tmp_path / "own")
    async with page(tmp_path / "data") as (client, _):
        answer = await client.post("/ui/models/bring", json={"name": f" {folder} "})
        model = answer.json()["model"]
        assert (await client.get("/ui/models/review", params={"model": model})).status_code == 200
        assert str(model) in (await client.get("/ui/menu")).text


async def test_the_prompt_format_is_asked_for_with_a_preview_where_nothing_says_it(tmp_path: Path) -> None:
    folder = written(checkpoint_files(), tmp_path / "own")
    async with page(tmp_path / "data") as (client, service):
        asked = (await client.post("/ui/models/bring", json={"name": str(folder)})).json()
        assert asked["model"] is None
        assert "does not say which prompt format" in asked["asks"]
        assert {"alpaca", "chatml", "koalpaca"} <= {family["id"] for family in asked["families"]}
        shown = (await client.get("/ui/families/preview", params={"family": "chatml"})).text
        assert "<mark>&lt;|im_start|&gt;</mark>user\nGood morning!" in shown
        answer = await client.post("/ui/models/bring", json={"name": str(folder), "family": "chatml"})
        assert service.named(answer.json()["model"]).family == "chatml"


async def test_what_is_nowhere_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async with page(tmp_path, offline=True) as (client, _):
        for name in (str(tmp_path / "nothing.gguf"), "no such thing"):
            refused = await client.post("/ui/models/bring", json={"name": name})
            assert refused.status_code == 404
            assert refused.json()["error"]["message"].endswith(".")
        assert (await client.get("/ui/families/preview", params={"family": "klingon"})).status_code == 404


async def test_strangers_open_no_files(tmp_path: Path) -> None:
    folder = written(checkpoint_files(template=TEMPLATE), tmp_path / "own")
    async with page(tmp_path / "data", share=True) as (client, service):
        refused = await client.post("/ui/models/bring", json={"name": str(folder)})
        assert refused.status_code == 409
        assert not any(str(folder) in name for name in service.catalog.models)
        assert "rc-bring" not in (await client.get("/ui/menu")).text
