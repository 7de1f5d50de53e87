"""What can be named as a model, and whether a chat would be answered."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from rallychat.errors import StoreError
from tests.api_world import chat, client, echoing, scripted, settings

ECHO = {
    "name": "Echo",
    "note": "",
    "parameters": "",
    "quantization": "",
    "license": "Apache-2.0",
    "url": "",
    "window": 8192,
    "size": 0,
    "memory": None,
}


async def test_a_model_says_what_it_is_and_where_it_stands(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, _):
        before = (await http.get("/v1/models/echo")).json()
        await http.post("/v1/chat/completions", json=chat())
        after = (await http.get("/v1/models/ECHO")).json()
    facts = before.pop("rallychat")
    assert before == {
        "id": "echo",
        "object": "model",
        "created": before["created"],
        "owned_by": "rallychat",
    }
    assert facts.pop("description")
    assert facts == ECHO | {"state": "ready"}
    assert after["rallychat"]["state"] == "loaded"


async def test_the_list_has_the_default_first_and_then_the_menu(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, service):
        listed = (await http.get("/v1/models")).json()
        shown = [model.id for model in service.catalog.models.values() if not model.hidden]
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["echo", *shown]
    assert [model["rallychat"]["state"] for model in listed["data"]] == ["ready"] + ["absent"] * len(shown)


async def test_a_default_that_does_not_exist_leaves_the_menu_as_it_is(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, service):
        service.settings = settings(tmp_path).model_copy(update={"model": "nothing"})
        listed = (await http.get("/v1/models")).json()["data"]
        unnamed = await http.post("/v1/chat/completions", json=chat())
    assert "smollm2-135m-instruct" in {model["id"] for model in listed}
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["nothing", "a/b", "..%2f..", "/etc/passwd", "%00", "hub:a/b/c.gguf"])
async def test_a_model_that_does_not_exist_is_not_found(tmp_path: Path, name: str) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.get(f"/v1/models/{name}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_near_names_are_told(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.get("/v1/models/smollm2-135m")
    assert "smollm2-135m-instruct" in response.json()["error"]["message"]


async def test_the_default_model_may_be_a_file_and_no_other_file_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    app, service = scripted(tmp_path)
    async with client(app) as http:
        refused = await http.post("/v1/chat/completions", json=chat(model=str(other)))
        default = await http.post("/v1/chat/completions", json=chat(model="echo"))
    assert (refused.status_code, default.status_code) == (404, 200)
    assert [asked[1] for asked in service.asked] == ["echo"]


async def test_the_process_is_alive(tmp_path: Path) -> None:
    app, _ = scripted(tmp_path)
    async with client(app) as http:
        response = await http.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_when_the_store_answers_and_the_model_is_here(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, _):
        response = await http.get("/readyz")
    well = {"ok": True, "detail": ""}
    assert (response.status_code, response.json()) == (
        200,
        {"status": "ready", "server": well, "store": well, "model": well},
    )


async def test_not_ready_while_the_default_model_is_not_here(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, service):
        service.settings = settings(tmp_path).model_copy(update={"model": "smollm2-135m-instruct"})
        response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["model"] == {
        "ok": False,
        "detail": "The default model 'smollm2-135m-instruct' is absent.",
    }


async def test_not_ready_without_a_known_default_model(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (http, service):
        service.settings = settings(tmp_path).model_copy(update={"model": "nothing"})
        response = await http.get("/readyz")
    assert response.status_code == 503
    assert "nothing" in response.json()["model"]["detail"]


async def test_not_ready_without_a_store_and_nobody_is_told_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(**_: object) -> NoReturn:
        raise StoreError("Another program keeps /srv/data/rallychat.db locked.", hint="close it")

    async with echoing(tmp_path) as (http, service):
        monkeypatch.setattr(service.store, "list", broken)
        response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["store"] == {
        "ok": False,
        "detail": "Another program keeps the database locked. (close it)",
    }
