"""What a response survives: a killed server, an engine that dies, an answer that goes on later, a cut in a tag."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from rallychat.catalog import Sampling
from rallychat.errors import StoreError
from rallychat.messages import TextDelta
from tests.responses_world import asked, deltas, events_of, next_run, text_of, told, world

ROOT = Path(__file__).parent.parent
KEY = {"Idempotency-Key": "survives"}
BODY = {"input": "!count 5000", "model": "slow", "background": True}
VICTIM = """
import asyncio, json, os, signal, sys
from contextlib import aclosing
from pathlib import Path
from rallychat.api.responses.viewing import to_watch, watched
from tests.responses_world import events_of, world

async def main():
    async with world(Path(sys.argv[1])) as (http, service):
        made = (await http.post("/v1/responses", json=json.loads(sys.argv[2]), headers=json.loads(sys.argv[3]))).json()
        frames = b""
        async with aclosing(watched(service, *await to_watch(service, made["id"]))) as told:
            async for frame in told:
                frames += frame
                if frames.count(b"output_text.delta") > 60:
                    print(json.dumps(events_of(frames.decode())), flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_killed_server_leaves_a_failed_response_with_every_word_under_its_number(
    tmp_path: Path,
) -> None:
    arguments = (str(tmp_path), json.dumps(BODY), json.dumps(KEY))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", VICTIM, *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    seen = json.loads(said)
    name = seen[0]["response"]["id"]
    async with world(tmp_path) as (http, _):
        made = (await http.get(f"/v1/responses/{name}")).json()
        assert (made["status"], made["output"][0]["status"]) == ("failed", "incomplete")
        assert "server stopped" in made["error"]["message"]
        assert text_of(made).startswith(deltas(seen))
        whole = await told(http, name)
        assert whole[: len(seen)] == seen
        assert whole[-1] == {"type": "response.failed", "sequence_number": len(whole) - 1, "response": made}
        assert await told(http, name, starting_after=seen[-1]["sequence_number"]) == whole[len(seen) :]
        again = await http.post("/v1/responses", json=BODY, headers=KEY)
        assert (again.json(), again.headers["idempotent-replayed"]) == (made, "true")
        after = await asked(http, "And then?", model="echo", previous_response_id=name)
    assert after["status"] == "completed"


async def test_an_engine_that_dies_leaves_a_failed_response_with_its_text(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        made = await asked(http, "!crash 6", model="echo")
        assert (made["status"], made["error"]["code"]) == ("failed", "server_error")
        assert text_of(made)
        assert await told(http, made["id"], starting_after=2)


async def test_an_answer_that_is_continued_on_the_page_is_told_whole(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, service):
        conversation = (await http.post("/v1/conversations", json={})).json()["id"]
        cut = await asked(http, "Hello, world", conversation=conversation, max_output_tokens=3)
        assert cut["status"] == "incomplete"
        run = await service.continue_answer(
            cut["id"].replace("resp_", "msg_"), sampling=Sampling(max_tokens=9)
        )
        live = asyncio.create_task(told(http, cut["id"]))
        await run.wait()
        whole = await told(http, cut["id"])
        assert await live == whole
        assert deltas(whole) == text_of(whole[-1]["response"])
        assert deltas(whole).startswith(text_of(cut))
        assert len(deltas(whole)) > len(text_of(cut))


async def test_what_looked_like_a_tag_when_an_answer_was_cut_is_told_and_stored_alike(tmp_path: Path) -> None:
    async with world(tmp_path) as (http, _):
        stream = await http.post(
            "/v1/responses",
            json={"input": "!say So a <th", "model": "thinking", "stream": True, "max_output_tokens": 50},
        )
        live = events_of(stream.text)
        assert deltas(live) == text_of(live[-1]["response"]) == "So a <th"
        assert await told(http, live[0]["response"]["id"]) == live


async def test_what_was_held_back_is_told_when_an_answer_is_cancelled(tmp_path: Path) -> None:
    """The tag may never come: its beginning belongs to the answer, for those who watch and in the store."""
    async with world(tmp_path) as (http, service):
        begun = next_run(service)
        made = await asked(http, "!say So a <thin" + "x" * 5, model="thinking", background=True)
        run = await begun
        await run.stop()
        seen = await told(http, made["id"])
        assert deltas(seen) == text_of(seen[-1]["response"])
        assert "".join(e.text for e in run.events if isinstance(e, TextDelta)) == deltas(seen)


async def test_an_answer_whose_end_cannot_be_stored_is_told_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as (http, service):

        async def full(*_: object, **__: object) -> None:
            raise StoreError("There is no room left on the disk.")

        monkeypatch.setattr(service.store.answers, "finish", full)
        stream = await http.post("/v1/responses", json={"input": "Hello", "stream": True})
        last = events_of(stream.text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "no room" in last["response"]["error"]["message"]
    assert text_of(last["response"]) == "Hello"
