"""How a conversation's context is kept, over the API: strategy, budget, memory, marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient

from rallychat.chat import ChatService
from rallychat.context.types import Memory
from tests.responses_world import world


async def talked(http: AsyncClient, service: ChatService) -> tuple[str, list[str]]:
    """A conversation of four messages, and their ids."""
    items = [{"role": "user", "content": text} for text in ("one", "two", "three", "four")]
    made = (await http.post("/v1/conversations", json={"items": items})).json()["id"]
    return made, [row.id for row in await service.store.path(made)]


async def test_strategy_and_budget_are_chosen_and_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made, _ = await talked(http, service)
        path = f"/v1/conversations/{made}/context"
        kept = (await http.patch(path, json={"strategy": "ledger", "budget": 900})).json()
        assert (kept["strategy"], kept["budget"]) == ("ledger", 900)
        assert kept == (await http.get(path)).json()
        kept = (await http.patch(path, json={"strategy": None})).json()
        assert (kept["strategy"], kept["budget"]) == (None, 900)
        run = await service.turn(made, "hello")
        await run.wait()
        report = (await service.store.path(made))[-1].report
        assert report is not None
        assert report.budget == 900


async def test_whether_other_conversations_are_quoted_is_chosen_and_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made, _ = await talked(http, service)
        path = f"/v1/conversations/{made}/context"
        assert (await http.get(path)).json()["elsewhere"] is None
        assert (await http.patch(path, json={"elsewhere": True})).json()["elsewhere"] is True
        assert (await http.patch(path, json={"budget": 900})).json()["elsewhere"] is True
        assert (await service.store.get(made)).elsewhere is True
        assert (await http.patch(path, json={"elsewhere": None})).json()["elsewhere"] is None


async def test_a_memory_is_changed_undone_and_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made, ids = await talked(http, service)
        path = f"/v1/conversations/{made}"
        await service.contexts.commit(made, Memory("ledger", "You: one", ids[1], (ids[0],), "rules", "long"))
        edited = (await http.post(f"{path}/memory", json={"text": "You: won"})).json()
        assert [(each["text"], each["by"]) for each in edited["versions"]] == [
            ("You: one", "rules"),
            ("You: won", "user"),
        ]
        assert edited["memory"] == 2
        late = await http.post(f"{path}/memory", json={"text": "You: one more", "version": 1})
        assert late.status_code == 409, late.text
        assert (await http.post(f"{path}/memory/undo?version=1")).status_code == 409
        assert (await http.get(f"{path}/context")).json() == edited
        undone = (await http.post(f"{path}/memory/undo")).json()
        assert (undone["memory"], [each["active"] for each in undone["versions"]]) == (1, [True, False])
        assert (await http.post(f"{path}/memory/undo")).json()["memory"] is None
        back = (await http.post(f"{path}/memory/restore", json={"version": 2})).json()
        assert back["memory"] == 2


async def test_a_message_is_pinned_excluded_and_neither(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        made, ids = await talked(http, service)
        item = f"/v1/conversations/{made}/items/{ids[1]}/mark"
        assert (await http.post(item, json={"mark": "pin"})).json()["pinned"] == [ids[1]]
        assert (await http.post(item, json={"mark": "exclude"})).json()["excluded"] == [ids[1]]
        told = (await http.post(item, json={"mark": None})).json()
        assert (told["pinned"], told["excluded"]) == ([], [])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "context", {"strategy": "magic"}, 400),
        ("PATCH", "context", {"budget": 3}, 400),
        ("PATCH", "context", {"elsewhere": "yes"}, 400),
        ("PATCH", "context", {"colour": "red"}, 400),
        ("POST", "memory", {"text": "nothing is remembered yet"}, 404),
        ("POST", "memory/undo", None, 404),
        ("POST", "memory/restore", {"version": 7}, 404),
        ("POST", "items/msg_1/mark", {"mark": "pin"}, 404),
        ("POST", "items/OTHER/mark", {"mark": "pin"}, 404),
        ("POST", "items/OWN/mark", {"mark": "loved"}, 400),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    async with world(tmp_path) as (http, service):
        made, (own, *_) = await talked(http, service)
        _, (other, *_) = await talked(http, service)
        before = (await http.get(f"/v1/conversations/{made}/context")).json()
        path = path.replace("OTHER", other).replace("OWN", own)
        answer = await http.request(method, f"/v1/conversations/{made}/{path}", json=body)
        assert answer.status_code == status, answer.text
        assert (await http.get(f"/v1/conversations/{made}/context")).json() == before
