"""Two server processes on one database: who answers, who may watch and stop, and what is left when one dies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.errors import Conflict
from rallychat.messages import Finished, Message, TextDelta
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests import postgres
from tests.responses_world import deltas, events_of, items, text_of, told, world

ROOT = Path(__file__).parent.parent
ON_POSTGRES = "RALLYCHAT_TEST_DATABASE_URL" in os.environ
OTHER = """
import asyncio, json, sys
from pathlib import Path
from tests.responses_world import world

async def main():
    async with world(Path(sys.argv[1])) as (http, service):
        print("{}", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            method, path, body = json.loads(line)
            answered = await http.request(method, path, json=body)
            said = answered.text if "stream" in path else answered.json()
            print(json.dumps([answered.status_code, said]), flush=True)

asyncio.run(main())
"""


class Other:
    """Another server, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, path, body]).encode() + b"\n")
        status, said = json.loads(await self.process.stdout.readline())
        return status, said

    async def begin(self, **more: Any) -> dict[str, Any]:
        status, made = await self.ask(
            "POST", "/v1/responses", {"input": "!count 5000", "model": "slow", "background": True, **more}
        )
        assert status == 200, made
        return dict(made)


@asynccontextmanager
async def another(folder: Path) -> AsyncIterator[Other]:
    """One that shares the database: with a folder of its own where that is PostgreSQL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OTHER, str(folder / "other" if ON_POSTGRES else folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        limit=2**26,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"{}\n"
    try:
        yield Other(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


Events = list[dict[str, Any]]


async def watching(http: httpx.AsyncClient, name: str, *, enough: int) -> asyncio.Task[Events]:
    """A task that watches a response to its end, once some of it has been stored by whoever makes it."""
    said = ""
    while len(said) < enough:
        said = text_of((await http.get(f"/v1/responses/{name}")).json())
    return asyncio.create_task(told(http, name))


async def test_an_answer_is_watched_and_stopped_from_another_process(tmp_path: Path) -> None:
    async with another(tmp_path) as other, world(tmp_path) as (http, _):
        name = (await other.begin())["id"]
        live = await watching(http, name, enough=40)
        stopped = (await http.post(f"/v1/responses/{name}/cancel")).json()
        assert stopped["status"] == "cancelled"
        seen = await live
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert deltas(seen) == text_of(stopped)
        assert seen[-1]["response"] == stopped
        status, there = await other.ask("GET", f"/v1/responses/{name}?stream=true")
        assert status == 200
        assert events_of(there) == seen
        assert await told(http, name, starting_after=7) == seen[8:]


async def test_the_viewers_of_an_answer_whose_process_is_killed_see_it_end_without_a_repeat(
    tmp_path: Path,
) -> None:
    async with another(tmp_path) as other, world(tmp_path) as (http, _):
        name = (await other.begin())["id"]
        live = await watching(http, name, enough=60)
        other.process.kill()
        await other.process.wait()
        await postgres.lapsed()
        seen = await live
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        made = (await http.get(f"/v1/responses/{name}")).json()
        assert (made["status"], seen[-1]["response"]) == ("failed", made)
        assert "server stopped" in made["error"]["message"]
        assert len(deltas(seen)) > 60
        assert (
            deltas(seen) == text_of(made) == " ".join(str(n + 1) for n in range(5000))[: len(text_of(made))]
        )
        assert await told(http, name) == seen


async def test_two_processes_do_not_answer_one_conversation_at_once(tmp_path: Path) -> None:
    async with another(tmp_path) as other, world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        await other.begin(conversation=conversation)
        refused = await http.post("/v1/responses", json={"input": "And I?", "conversation": conversation})
        assert refused.status_code == 409
        assert "still answering" in refused.json()["error"]["message"]
        with pytest.raises(Conflict, match="still answering"):
            await service.turn(conversation, "And I?")
        other.process.kill()
        await other.process.wait()
        await postgres.lapsed()
        mine = await http.post("/v1/responses", json={"input": "And now?", "conversation": conversation})
        assert mine.status_code == 200
        assert (await items(http, conversation))[-1] == "And now?"


async def test_the_page_follows_what_another_process_answers(tmp_path: Path) -> None:
    async with another(tmp_path) as other, world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        name = (await other.begin(conversation=conversation))["id"]
        run = await service.answering(await service.store.get(conversation))
        assert run is not None
        assert (run.message_id, run.made_here) == (name.replace("resp_", "msg_"), False)
        assert await service.answering(await service.store.get(conversation)) is run
        async for event in run.attach():
            if isinstance(event, TextDelta):
                break
        end = await service.stop(run.id)
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert (await service.store.message(run.message_id)).text == run.text
        await service.turn(conversation, "Thank you")


async def test_leaving_ends_the_watching_and_not_the_answer(tmp_path: Path) -> None:
    async with another(tmp_path) as other:
        async with world(tmp_path) as (_, service):
            name = (await other.begin())["id"]
            run = await service.follow(name.replace("resp_", "msg_"))
            assert run is not None
            await run.begun()
        assert run.done
        assert (await other.ask("GET", f"/v1/responses/{name}"))[1]["status"] == "in_progress"


async def test_a_lease_is_had_by_one_process_until_it_is_given_back_or_its_process_dies(
    tmp_path: Path,
) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as one:
        async with ConversationStore.open(Settings(data_dir=tmp_path)) as two:
            assert sorted(await asyncio.gather(*(s.leases.take("batches") for s in (one, two)))) == [
                False,
                True,
            ]
            first, second = (one, two) if await one.leases.take("batches") else (two, one)
            await second.leases.release("batches")
            assert not await second.leases.take("batches")
            await first.leases.release("batches")
            assert await second.leases.take("batches")
            assert not await first.leases.take("batches")
            assert await first.leases.take("another")
            await second.leases.release("batches")
            assert await two.leases.take("batches")
        assert await one.leases.take("batches")  # `two` is gone


async def test_an_answer_that_went_over_to_another_process_is_not_overwritten(tmp_path: Path) -> None:
    where = Settings(data_dir=tmp_path)
    async with ConversationStore.open(where) as one:
        conversation = await one.create()
        user = Message.of("user", "hi")
        _, answer = await one.answers.begin(conversation.id, parent_id=None, user=user, model="m")
        for file in (tmp_path / "run").glob("owner_*"):
            file.unlink()
        async with ConversationStore.open(where) as two:
            await two.answers.resume(answer.id)
            with pytest.raises(Conflict, match="ended already"):
                await one.answers.finish(answer.id, parts=(), reason="stop", usage=None, timings=None)
            assert (await two.message(answer.id)).status == "running"
