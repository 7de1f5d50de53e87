from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import httpx
import pytest

from rallychat.chat import ChatService
from rallychat.messages import ContextReport, Segment, Text, Timings, Usage
from rallychat.store import Imported, ImportedMessage, Memory, StoredMessage
from rallychat.ui import fragments
from rallychat.ui.plot import HEIGHT, WIDTH, plot_of
from rallychat.ui.prompt_bar import bar_of
from tests.test_ui_routes import page

SMALL = """
name = "Small"
family = "echo"
engine = "echo"
window = 512
[weights]
kind = "none"
"""


def answer(prompt: int, cached: int, first_ms: float) -> StoredMessage:
    return StoredMessage(
        id=f"msg_{prompt}_{first_ms}",
        conversation_id="conv",
        parent_id=None,
        role="assistant",
        parts=(Text("yes"),),
        model="echo",
        status="complete",
        finish_reason="stop",
        error=None,
        usage=Usage(prompt, 5, cached),
        timings=Timings(0, first_ms, first_ms + 10),
        report=None,
        span=None,
        created_at=datetime.now(UTC),
    )


@asynccontextmanager
async def talked(folder: Path, turns: int) -> AsyncIterator[tuple[httpx.AsyncClient, ChatService, str]]:
    """A conversation of so many turns with a model of a short window."""
    async with page(folder, models={"small": SMALL}) as (client, service):
        id_ = (await service.store.create(model="small")).id
        for number in range(turns):
            await (
                await service.turn(id_, f"Note {number}: the {number} blue <keys> hang in the hall. " * 4)
            ).wait()
        yield client, service, id_


async def shown(client: httpx.AsyncClient, id_: str) -> str:
    answered = await client.get(f"/ui/conversations/{id_}/context")
    assert answered.status_code == 200, answered.text
    return answered.text


def test_the_bar_is_as_long_as_the_budget_and_marks_where_turns_are_compacted() -> None:
    segments = (Segment("system", None, 10), Segment("user", "a", 30), Segment("assistant", "b", 60))
    bar = bar_of(ContextReport("full", 500, 400, 100, segments, high_mark=300, budget_why="it fits"), 40)
    assert [(each.kind, each.start, each.share) for each in bar.bars] == [
        ("system", 0.0, 2.5),
        ("user", 2.5, 7.5),
        ("assistant", 10.0, 15.0),
    ]
    assert (bar.reused_share, bar.prompt_share, bar.mark_share) == (10.0, 25.0, 75.0)
    assert (bar.reused, bar.evaluated, bar.why) == (40, 60, "it fits")


def test_very_many_parts_are_drawn_as_one_and_nothing_is_lost() -> None:
    segments = tuple(Segment("user", str(number), 2) for number in range(1000))
    bar = bar_of(ContextReport("full", 4000, 3000, 2000, segments), 0)
    assert len(bar.bars) == 121
    assert sum(each.tokens for each in bar.bars) == 2000
    assert bar.bars[-1].start + bar.bars[-1].share == pytest.approx(200 / 3, abs=0.01)


def test_a_plot_needs_two_turns_and_stays_in_its_frame() -> None:
    assert plot_of([answer(10, 0, 5)]) is None
    path = [answer(100 * number, 90 * number, 7.0 * number) for number in range(1, 400)]
    plot = plot_of(path)
    assert plot is not None
    assert [plot.points[0].number, plot.points[-1].number] == [200, 399]
    assert plot.most_tokens == 40_000
    for point in plot.points:
        assert 0 <= point.x <= WIDTH
        assert all(0 <= y <= HEIGHT for y in (point.prompt_y, point.evaluated_y, point.first_y))
    assert plot.points[-1].told == "Turn 399: 39,900 tokens, 3,990 read anew, first token after 2.8 s"


async def test_every_message_that_left_the_prompt_is_named_with_what_happened_to_it(tmp_path: Path) -> None:
    async with talked(tmp_path, 8) as (client, service, id_):
        html = await shown(client, id_)
        path = await service.store.path(id_)
        report = (await service.store.message(path[-1].id)).report
        assert report is not None
        gone = {*report.compacted, *report.dropped, *report.retrieved}
        assert len(gone) > 4
        assert set(re.findall(r'<li data-message="(\w+)"', html)) == gone
        assert "<keys>" not in html
        assert "&lt;keys&gt;" in html
        assert 'class="plot"' in html


async def test_a_pinned_message_says_so_on_the_page_and_stays_in_the_prompt(tmp_path: Path) -> None:
    async with talked(tmp_path, 3) as (client, service, id_):
        first = (await service.store.path(id_))[0].id
        marked = await client.post(f"/ui/messages/{first}/mark", json={"mark": "pin"})
        assert marked.json() == {"mark": "pin"}
        for number in range(5):
            await (await service.turn(id_, f"More {number} of the same. " * 8)).wait()
        assert "1 message pinned by you" in await shown(client, id_)
        newest = (await service.store.path(id_))[-1].id
        report = (await service.store.message(newest)).report
        assert report is not None
        assert first in report.kept
        messages = (await client.get(f"/ui/conversations/{id_}")).json()["html"]
        assert f'data-message="{first}" data-mark="pin"' in messages
        await client.post(f"/ui/messages/{first}/mark", json={"mark": None})
        assert "pinned by you" not in await shown(client, id_)


async def test_the_memory_is_edited_undone_and_taken_back(tmp_path: Path) -> None:
    async with talked(tmp_path, 1) as (client, service, id_):
        until = (await service.store.path(id_))[1].id
        made = Memory("summary", "The keys are blue.", until, (until,), "model", "the prompt was long")
        await service.contexts.commit(id_, made)
        html = await shown(client, id_)
        assert "Version 1, written by the model" in html
        assert ">The keys are blue.</textarea>" in html
        red = {"text": "The keys are <red>.", "version": 1}
        edited = await client.post(f"/ui/conversations/{id_}/memory", json=red)
        assert edited.json() == {"version": 2}
        assert "Version 2, edited by you" in (html := await shown(client, id_))
        assert ">The keys are &lt;red&gt;.</textarea>" in html
        for path, late in (("memory", red), ("memory/undo", {"version": 1})):
            refused = await client.post(f"/ui/conversations/{id_}/{path}", json=late)
            assert refused.status_code == 409
            assert "Version 2 of the memory is in force by now" in refused.json()["error"]["message"]
        assert len(await service.contexts.memories(id_)) == 2
        undone = await client.post(f"/ui/conversations/{id_}/memory/undo", json={"version": 2})
        assert undone.json() == {"version": 1}
        assert "Version 2, edited by you, undone" in await shown(client, id_)
        again = await client.post(f"/ui/conversations/{id_}/memory/restore", json={"version": 2})
        assert again.json() == {"version": 2}
        assert ">The keys are &lt;red&gt;.</textarea>" in await shown(client, id_)


async def test_a_conversation_is_kept_as_its_person_chooses(tmp_path: Path) -> None:
    async with talked(tmp_path, 1) as (client, service, id_):
        kept = await client.patch(
            f"/ui/conversations/{id_}/context", json={"strategy": "last_n", "budget": 200}
        )
        assert kept.json() == {"strategy": "last_n", "budget": 200, "elsewhere": None}
        assert '<option value="last_n" selected>' in (html := await shown(client, id_))
        assert 'value="200"' in html
        await (await service.turn(id_, "and now")).wait()
        newest = (await service.store.path(id_))[-1].id
        report = (await service.store.message(newest)).report
        assert report is not None
        assert (report.strategy, report.budget) == ("last_n", 200)
        back = await client.patch(f"/ui/conversations/{id_}/context", json={"strategy": None})
        assert back.json() == {"strategy": None, "budget": 200, "elsewhere": None}


async def test_each_conversation_says_whether_the_others_are_quoted(tmp_path: Path) -> None:
    async with page(tmp_path) as (client, service):
        id_ = (await service.store.create()).id
        other = await service.store.create(title="Pets")
        await (await service.turn(other.id, "my cat is called Miro")).wait()
        address = f"/ui/conversations/{id_}/context"

        async def quoted() -> bool:
            await (await service.turn(id_, "What is my cat called?")).wait()
            newest = (await service.store.path(id_))[-1].id
            report = (await service.store.message(newest)).report
            assert report is not None
            return bool(report.elsewhere)

        assert not await quoted()
        assert (await client.patch(address, json={"elsewhere": True})).json()["elsewhere"] is True
        assert '<option value="yes" selected>' in await shown(client, id_)
        assert await quoted()
        assert (await client.patch(address, json={"elsewhere": None})).json()["elsewhere"] is None
        assert not await quoted()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ui/messages/{message}/mark", {"mark": "shout"}),
        ("/ui/messages/msg_nothing/mark", {"mark": "pin"}),
        ("/ui/conversations/{id}/memory", {"text": "nothing was remembered yet", "version": 1}),
        ("/ui/conversations/{id}/memory/undo", {"version": 1}),
        ("/ui/conversations/{id}/memory/restore", {"version": 9}),
    ],
)
async def test_what_cannot_be_done_is_refused_in_a_sentence(
    tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    async with talked(tmp_path, 1) as (client, service, id_):
        message = (await service.store.path(id_))[0].id
        refused = await client.post(path.format(id=id_, message=message), json=body)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["message"].endswith(".")


async def test_an_unknown_strategy_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with talked(tmp_path, 1) as (client, service, id_):
        refused = await client.patch(f"/ui/conversations/{id_}/context", json={"strategy": "amnesia"})
        assert refused.status_code == 400
        assert (await service.store.get(id_)).strategy is None


def test_the_inspector_of_a_new_conversation_says_what_it_will_show() -> None:
    assert "Send a message first." in unescape(fragments.context(None))


async def test_the_inspector_shows_a_conversation_that_another_product_s_model_answered(
    tmp_path: Path,
) -> None:
    said = (
        ImportedMessage("user", (Text("Hi."),), None),
        ImportedMessage("assistant", (Text("Ho."),), 0, "gpt-4o"),
    )
    async with page(tmp_path) as (client, service):
        made = await service.store.library.take_in(Imported("x", "Greetings", said, 1))
        assert made is not None
        seen = await client.get(f"/ui/conversations/{made.id}/context")
    assert seen.status_code == 200, seen.text
    assert "Ho." in unescape(seen.text)
