"""Files and batches: uploaded, checked, answered, sorted; cancelled, expired, killed; nobody else's."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from openai import OpenAI
from sqlalchemy import update

from rallychat.api.batch_lines import BatchLines
from rallychat.batches import Line, Turns, check
from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.errors import NotHere, StorageFull, StoreUnavailable
from rallychat.identity import acting_as
from rallychat.store import BatchStore, ConversationStore, FileStore
from rallychat.store.batch_tables import batches
from tests.api_world import settings
from tests.batch_world import (
    CHAT,
    batching,
    begun,
    content,
    ended,
    jsonl,
    line,
    seen,
    until,
    uploaded,
    with_slow,
)
from tests.live_server import live

# --- files --------------------------------------------------------------------------------------------------


async def test_a_file_is_kept_whole_listed_and_deleted(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    async with batching(tmp_path) as (http, _):
        first = await uploaded(http, data, purpose="user_data")
        second = await uploaded(
            http, b"x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        )
        answer = await http.get(f"/v1/files/{first}/content")
        assert answer.content == data
        found = (await http.get(f"/v1/files/{second}")).json()
        assert (found["bytes"], found["filename"], found["purpose"]) == (1, "lines.jsonl", "batch")
        assert found["expires_at"] - found["created_at"] == 3600
        ids = [each["id"] for each in (await http.get("/v1/files")).json()["data"]]
        assert ids == [second, first]
        page = (await http.get("/v1/files?limit=1&order=asc")).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == ([first], True)
        page = (await http.get(f"/v1/files?limit=1&order=asc&after={first}")).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == ([second], False)
        only = (await http.get("/v1/files?purpose=user_data")).json()["data"]
        assert [each["id"] for each in only] == [first]
        assert (await http.delete(f"/v1/files/{first}")).json()["deleted"]
        page = (await http.get(f"/v1/files?order=asc&after={first}")).json()
        assert [each["id"] for each in page["data"]] == [second]
        assert (await http.get("/v1/files?after=file-x")).status_code == 404
        assert (await http.get(f"/v1/files/{first}/content")).status_code == 404
        assert [path.name for path in (tmp_path / "files").iterdir()] == [second]


BAD_FORMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no purpose": ({"files": {"file": b"x"}}, 400, "'purpose' is missing"),
    "another purpose": (
        {"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}},
        400,
        "'fine-tune' is not supported",
    ),
    "no file": ({"files": {"other": (None, "x")}, "data": {"purpose": "batch"}}, 400, "'file' is missing"),
    "another file": ({"files": {"other": b"x"}, "data": {"purpose": "batch"}}, 400, "called 'file'"),
    "an unknown field": (
        {"files": {"file": b"x"}, "data": {"purpose": "batch", "n": "1"}},
        400,
        "'n' is not",
    ),
    "a short life": (
        {
            "files": {"file": b"x"},
            "data": {
                "purpose": "batch",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "9",
            },
        },
        400,
        "between 3600 and 2592000",
    ),
    "JSON": ({"json": {"purpose": "batch"}}, 415, "multipart/form-data"),
    "too long": ({"files": {"file": b"x" * 5000}, "data": {"purpose": "batch"}}, 413, "max_file_bytes"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_a_bad_upload_is_refused_by_name_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    sent, status, said = BAD_FORMS[name]
    async with batching(tmp_path, max_file_bytes=4000) as (http, _):
        answer = await http.post("/v1/files", **sent)
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text
        assert (await http.get("/v1/files")).json()["data"] == []
        assert list((tmp_path / "files").glob("*")) == []


def test_whatever_bytes_a_form_is_made_of_it_is_answered(tmp_path: Path) -> None:
    with live(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as http:

        @how(max_examples=60, deadline=None)
        @given(body=st.binary(max_size=200), tail=st.sampled_from([b"", b"\r\n--b--\r\n", b"--b\r\n"]))
        def post(body: bytes, tail: bytes) -> None:
            head = {"content-type": "multipart/form-data; boundary=b"}
            answer = http.post("/v1/files", content=b"--b\r\n" + body + tail, headers=head)
            assert answer.status_code == 400, answer.text
            assert list((tmp_path / "files").glob("*")) == []

        post()


async def test_an_upload_sent_again_with_its_key_is_one_file(tmp_path: Path) -> None:
    async with batching(tmp_path) as (http, _):

        async def post(data: bytes) -> httpx.Response:
            sent = {"files": {"file": ("a", data)}, "data": {"purpose": "batch"}}
            return await http.post("/v1/files", headers={"idempotency-key": "k"}, **sent)  # type: ignore[arg-type]

        one, two = await asyncio.gather(post(b"same"), post(b"same"))
        assert one.json() == two.json()
        assert (await post(b"other")).status_code == 409
        assert (
            len((await http.get("/v1/files")).json()["data"])
            == len(list((tmp_path / "files").iterdir()))
            == 1
        )


LATE: list[type[BaseException]] = [StoreUnavailable, asyncio.CancelledError]
"""What the store may raise although it has stored."""


def stores_and_raises(method: Any, error: type[BaseException]) -> Any:
    async def told(*args: Any, **given: Any) -> Any:
        await method(*args, **given)
        raise error

    return told


@pytest.mark.parametrize("error", LATE)
async def test_an_upload_whose_row_is_there_is_kept_although_nobody_could_be_told(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with batching(tmp_path) as (http, _):
        with monkeypatch.context() as patched:
            patched.setattr(FileStore, "keep", stores_and_raises(FileStore.keep, error))
            with suppress(AssertionError, asyncio.CancelledError):
                await uploaded(http, b"x")
        (row,) = (await http.get("/v1/files")).json()["data"]
        assert (await http.get(f"/v1/files/{row['id']}/content")).content == b"x"


@pytest.mark.parametrize("error", LATE)
async def test_the_answers_of_a_batch_that_is_completed_are_kept_although_its_runner_was_not_told(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchStore, "end", stores_and_raises(BatchStore.end, error))
    async with batching(tmp_path) as (http, _):
        batch = await ended(http, await begun(http, jsonl([line("a")])))
        assert batch["status"] == "completed"
        assert [each["custom_id"] for each in await content(http, batch["output_file_id"])] == ["a"]


async def test_what_one_may_keep_is_bounded(tmp_path: Path) -> None:
    async with batching(tmp_path) as (_, service):
        files = service.store.files

        async def keep(size: int) -> None:
            name, stream = files.begin()
            stream.write(b"x" * size)
            landed = files.land(name, stream)
            await files.keep(name, landed, purpose="batch", filename="f", most=10)

        await keep(6)
        with pytest.raises(StorageFull, match="6 of 10 are used"):
            await keep(5)
        await keep(4)


async def test_files_and_batches_of_others_are_not_there(tmp_path: Path) -> None:
    async with batching(tmp_path) as (http, service):
        file = await uploaded(http, jsonl([line("a")]))
        batch = await begun(http, jsonl([line("a")]))
        with acting_as("somebody else"):
            for path in (f"/v1/files/{file}", f"/v1/files/{file}/content", f"/v1/batches/{batch['id']}"):
                with pytest.raises(Exception, match="There is no"):
                    await (
                        service.store.files.get(file)
                        if "files" in path
                        else service.store.batches.get(batch["id"])
                    )
            with pytest.raises(Exception, match="There is no"):
                await service.store.files.delete(file)
            with pytest.raises(Exception, match="There is no"):
                await service.store.batches.cancel(batch["id"])
            with pytest.raises(Exception, match="There is no"):
                await service.store.batches.create(
                    input_file_id=file, endpoint=CHAT, completion_window="24h", lives=timedelta(hours=1)
                )
            assert list(await service.store.files.list(limit=10)) == []
            assert list(await service.store.batches.list(limit=10)) == []
        await ended(http, batch)


# --- batches ------------------------------------------------------------------------------------------------


async def test_a_batch_is_answered_and_sorted(tmp_path: Path) -> None:
    lines = [line(f"r-{n}", f"say {n}") for n in range(20)]
    lines[7]["body"]["temprature"] = 1
    lines[9]["body"]["messages"] = [{"role": "user", "content": "x" * 90_000}]
    async with batching(tmp_path) as (http, service):
        batch = await begun(http, jsonl(lines), metadata={"of": "mine"})
        assert (batch["status"], batch["metadata"]) == ("validating", {"of": "mine"})
        done = await ended(http, batch)
        assert (done["status"], done["model"]) == ("completed", "echo")
        assert done["request_counts"] == {"total": 20, "completed": 18, "failed": 2}
        order = ("created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at")
        assert [done[name] for name in order] == sorted(done[name] for name in order)
        answers = await content(http, done["output_file_id"])
        assert [each["custom_id"] for each in answers] == [f"r-{n}" for n in range(20) if n not in (7, 9)]
        said = answers[3]["response"]["body"]["choices"][0]["message"]["content"]
        assert (answers[3]["error"], answers[3]["response"]["status_code"], said) == (None, 200, "say 3")
        assert (
            sum(each["response"]["body"]["usage"]["completion_tokens"] for each in answers)
            == (done["usage"]["output_tokens"])
        )
        errors = await content(http, done["error_file_id"])
        assert [(each["custom_id"], each["response"]["status_code"]) for each in errors] == [
            ("r-7", 400),
            ("r-9", 400),
        ]
        listed = (await http.get("/v1/files?purpose=batch_output")).json()["data"]
        assert {each["id"] for each in listed} == {done["output_file_id"], done["error_file_id"]}
        assert list((tmp_path / "batches").iterdir()) == []
        metrics = service.metrics.text().decode()
        assert 'rallychat_batch_lines_total{outcome="done"} 18.0' in metrics
        assert 'rallychat_batch_lines_total{outcome="failed"} 2.0' in metrics


@pytest.mark.parametrize(
    ("endpoint", "body", "said"),
    [
        ("/v1/completions", {"model": "echo", "prompt": "abc", "max_tokens": 20}, "abc"),
        ("/v1/responses", {"model": "echo", "input": "hello"}, "hello"),
    ],
)
async def test_other_endpoints_are_answered_too(
    tmp_path: Path, endpoint: str, body: dict[str, Any], said: str
) -> None:
    lines = [{"custom_id": "a", "method": "POST", "url": endpoint, "body": body}]
    lines.append(
        {"custom_id": "b", "method": "POST", "url": endpoint, "body": body | {"store": True, "stream": True}}
    )
    async with batching(tmp_path) as (http, _):
        done = await ended(http, await begun(http, jsonl(lines), endpoint=endpoint))
        assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        (answer,) = await content(http, done["output_file_id"])
        assert said in orjson.dumps(answer["response"]["body"]).decode()
        assert done["usage"]["output_tokens"] > 0


BAD_FILES: dict[str, tuple[bytes, list[tuple[str, int | None]]]] = {
    "empty": (b"\n  \n", [("empty_file", None)]),
    "no JSON": (b"{\n[]\n", [("invalid_json_line", 1), ("invalid_json_line", 2)]),
    "the same name": (jsonl([line("a"), line("b"), line("a")]), [("duplicate_custom_id", 3)]),
    "another url": (jsonl([line("a", url="/v1/embeddings")]), [("invalid_url", 1)]),
    "another method": (jsonl([line("a", method="GET")]), [("invalid_method", 1)]),
    "no body": (
        jsonl([{"custom_id": "a", "method": "POST", "url": CHAT}]),
        [("missing_required_parameter", 1)],
    ),
    "two models": (jsonl([line("a"), line("b", body={"model": "slow"})]), [("mismatched_model", 2)]),
    "no such model": (jsonl([line("a", body={"model": "gpt-oops"})]), [("model_not_found", None)]),
    "a model that is not here": (
        jsonl([line("a", model="smollm2-135m-instruct")]),
        [("model_not_found", None)],
    ),
    "an unknown key": (jsonl([line("a", extra=1)]), [("unknown_parameter", 1)]),
    "a number as name": (jsonl([line("a", custom_id=3)]), [("invalid_custom_id", 1)]),
    "too many": (jsonl([line(str(n)) for n in range(31)]), [("too_many_requests", None)]),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_what_is_wrong_with_a_file_is_told_line_by_line(tmp_path: Path, name: str) -> None:
    data, wrong = BAD_FILES[name]
    async with batching(tmp_path, max_batch_lines=30) as (http, _):
        done = await ended(http, await begun(http, data))
        assert (done["status"], done["output_file_id"]) == ("failed", None)
        assert [(each["code"], each["line"]) for each in done["errors"]["data"]] == wrong


async def test_weights_that_vanish_amid_a_batch_are_no_line_s_fault(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        lines = BatchLines(service, model="smollm2-135m-instruct", longest=1000)
        with pytest.raises(NotHere):
            await lines.answer(Line(1, orjson.dumps(line("a"))))


@given(st.lists(st.one_of(st.binary(max_size=40), st.builds(jsonl, st.lists(st.just(line("a")))))))
def test_whatever_bytes_a_file_has_it_is_a_batch_or_says_why_not(parts: list[bytes]) -> None:
    data = b"\n".join(parts)
    found = check(io.BytesIO(data), endpoint=CHAT, most=5, longest=1000)
    whole = [text for text in data.split(b"\n") if text.strip()]
    assert bool(found.faults) == (whole != [jsonl([line("a")]).strip()])


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, None),
        ({"more": 1}, 400, "more"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            400,
            "output_expires_after.seconds",
        ),
    ],
)
async def test_a_bad_request_for_a_batch_is_refused_by_name(
    tmp_path: Path, asked: dict[str, Any], status: int, param: str | None
) -> None:
    async with batching(tmp_path) as (http, _):
        file = await uploaded(http, jsonl([line("a")]))
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"} | asked
        answer = await http.post("/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        mine = await uploaded(http, b"x", purpose="user_data")
        answer = await http.post("/v1/batches", json=body | {"input_file_id": mine} if status == 404 else {})
        assert answer.status_code == 400


async def test_a_batch_sent_again_with_its_key_is_one_batch(tmp_path: Path) -> None:
    async with batching(tmp_path) as (http, _):
        file = await uploaded(http, jsonl([line("a")]))
        body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        first = await http.post("/v1/batches", json=body, headers={"idempotency-key": "k"})
        again = await http.post("/v1/batches", json=body, headers={"idempotency-key": "k"})
        assert first.json() == again.json()
        assert len((await http.get("/v1/batches")).json()["data"]) == 1
        await ended(http, first.json())


async def test_a_cancelled_batch_keeps_what_was_done(tmp_path: Path) -> None:
    lines = [line(str(n), model="slow") for n in range(5)]
    lines += [line(f"long {n}", "!count 100000", model="slow") for n in range(30)]
    async with batching(with_slow(tmp_path), slots=2) as (http, service):
        batch = await begun(http, jsonl(lines))
        file = batch["input_file_id"]
        found = await seen(http, batch, lambda it: it["request_counts"]["completed"] == 5)
        assert (await http.delete(f"/v1/files/{file}")).status_code == 409
        assert found["status"] == "in_progress"
        assert (await http.post(f"/v1/batches/{batch['id']}/cancel")).json()["status"] == "cancelling"
        done = await ended(http, batch)
        assert (done["status"], done["error_file_id"]) == ("cancelled", None)
        assert done["request_counts"] == {"total": 35, "completed": 5, "failed": 0}
        assert len(await content(http, done["output_file_id"])) == 5
        assert (await http.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 409
        assert (await http.delete(f"/v1/files/{file}")).status_code == 200
        assert service.pool.engines()[0].queue.idle


async def test_what_nobody_came_to_in_time_expires(tmp_path: Path) -> None:
    lines = [line("short"), *(line(f"long {n}", "!count 100000") for n in range(9))]
    async with batching(tmp_path, slots=1) as (http, _):
        batch = await begun(http, jsonl(lines))
        await seen(http, batch, lambda it: it["request_counts"]["completed"] >= 1)
    async with ConversationStore.open(settings(tmp_path)) as store:
        async with store.batches._database.write() as db:
            await db.execute(update(batches).values(expires_at=datetime.now(UTC)))
    async with batching(tmp_path, slots=1) as (http, _):
        done = await ended(http, batch)
        assert done["status"] == "expired"
        counts = done["request_counts"]
        assert counts["total"] == counts["completed"] + counts["failed"] == 10
        assert counts["completed"] >= 1
        errors = await content(http, done["error_file_id"])
        assert len(errors) == counts["failed"] >= 1
        assert {(each["response"], each["error"]["code"]) for each in errors} == {(None, "batch_expired")}


async def test_a_line_that_kills_the_engine_is_the_only_one_that_fails(tmp_path: Path) -> None:
    lines = [line(f"{n}", "!crash 3" if n == 2 else f"!repeat 40 word{n} ") for n in range(12)]
    async with batching(tmp_path, slots=4) as (http, service):
        done = await ended(http, await begun(http, jsonl(lines)), patience=280)
        assert done["request_counts"] == {"total": 12, "completed": 11, "failed": 1}
        assert [engine.restarts for engine in service.pool.engines()] == [2]  # among others, then by itself
        errors = await content(http, done["error_file_id"])
        assert [each["custom_id"] for each in errors] == ["2"]
        assert {each["response"]["body"]["error"]["code"] for each in errors} == {"engine_interrupted"}


async def test_people_go_first(tmp_path: Path) -> None:
    lines = [line(str(n), "!count 3000") for n in range(8)]
    async with batching(tmp_path, slots=2) as (http, service):
        batch = await begun(http, jsonl(lines))
        await until(lambda: any(engine.queue.busy for engine in service.pool.engines()))
        answer = await http.post(CHAT, json={"messages": [{"role": "user", "content": "Me!"}]})
        assert answer.json()["choices"][0]["message"]["content"] == "Me!"
        found = (await http.get(f"/v1/batches/{batch['id']}")).json()
        assert found["status"] == "in_progress"
        done = await ended(http, batch, patience=110)
        assert done["request_counts"] == {"total": 8, "completed": 8, "failed": 0}


async def test_a_person_who_wants_another_model_does_not_wait_for_the_batch(tmp_path: Path) -> None:
    scripted(tmp_path, "other", "delay_ms = 1")
    lines = [
        line(str(n), "!count 50000", body={"model": "other", **line("", "!count 50000")["body"]})
        for n in range(9)
    ]
    for each in lines:
        each["body"]["model"] = "other"
    async with batching(tmp_path, slots=2, max_loaded=1) as (http, service):
        batch = await begun(http, jsonl(lines))
        await until(lambda: any(engine.queue.busy for engine in service.pool.engines()))
        async with asyncio.timeout(20):
            answer = await http.post(
                CHAT, json={"model": "echo", "messages": [{"role": "user", "content": "Me!"}]}
            )
        assert answer.json()["choices"][0]["message"]["content"] == "Me!"
        found = (await http.get(f"/v1/batches/{batch['id']}")).json()
        assert (found["status"], found["request_counts"]["failed"]) == ("in_progress", 0)
        await http.post(f"/v1/batches/{batch['id']}/cancel")
        assert (await ended(http, batch))["status"] == "cancelled"


# --- turns --------------------------------------------------------------------------------------------------


async def order_of(turns: Turns, asked: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """In which order (model, user, batch) get their turns, if all of them come at once."""
    order = []
    gate = asyncio.Event()

    async def one(who: tuple[str, str, str]) -> None:
        async with turns.turn(*who):
            order.append(who)
            await gate.wait()

    tasks = [asyncio.create_task(one(who)) for who in asked]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*tasks)
    return order


async def test_turns_go_round_by_user_and_then_by_batch() -> None:
    one, two, other = ("m", "ann", "1"), ("m", "ann", "2"), ("m", "bob", "3")
    asked = [one] * 4 + [two] * 2 + [other] * 3
    order = await order_of(Turns(lambda _: 1), asked)
    assert [who[1] for who in order[1:7]] == ["ann", "bob"] * 3  # the first was there before the others
    assert {who[2] for who in order[1:4:2]} == {"1", "2"}


async def test_another_model_comes_when_its_time_has_come() -> None:
    now = [0.0]
    turns = Turns(lambda _: 1, quantum=10, clock=lambda: now.__setitem__(0, now[0] + 4) or now[0])
    order = await order_of(turns, [("a", "ann", "1")] * 20 + [("b", "bob", "2")])
    assert 0 < order.index(("b", "bob", "2")) < 20


async def test_who_leaves_the_line_takes_no_turn_away() -> None:
    turns = Turns(lambda _: 1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(turns.turn("m", "ann", "1"))
        waiting = [asyncio.create_task(order_of(turns, [("m", "bob", str(n))])) for n in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    assert [len(await task) for task in waiting[1:]] == [1, 1]


# --- servers ------------------------------------------------------------------------------------------------

SERVE = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from tests.batch_world import batching
    async def main():
        async with batching(Path(sys.argv[1]), slots=2) as (http, service):
            print("up", flush=True)
            await asyncio.Event().wait()
    asyncio.run(main())
""")


def served_and_killed(folder: Path, *, after: float) -> None:
    command = [sys.executable, "-c", SERVE, str(folder)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    assert killed.stdout is not None
    killed.stdout.readline()
    time.sleep(after)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()


@pytest.mark.timeout(180)
async def test_killed_again_and_again_no_line_is_lost_or_answered_twice(tmp_path: Path) -> None:
    chance = random.Random(1)
    lines = [line(str(n), f"!repeat 30 word{n} ") for n in range(60)]
    async with batching(tmp_path) as (http, service):
        with acting_as("local"):
            file = await uploaded(http, jsonl(lines))
            made = await service.store.batches.create(
                input_file_id=file, endpoint=CHAT, completion_window="24h", lives=timedelta(hours=1)
            )
            await service.store.batches.get(made.id)
            if (
                claimed := await service.store.batches.claim(made)
            ) is not None:  # before its own runner looks
                await service.store.batches.release(claimed.id)
    for _ in range(3):
        await asyncio.to_thread(served_and_killed, tmp_path, after=chance.random() * 0.6)
    async with batching(tmp_path) as (http, _):
        done = await ended(http, {"id": made.id})
        answers = await content(http, done["output_file_id"])
        assert done["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
        assert [each["custom_id"] for each in answers] == [str(n) for n in range(60)]
        said = [each["response"]["body"]["choices"][0]["message"]["content"] for each in answers]
        assert said == [f"word{n} " * 30 for n in range(60)]


async def test_of_two_servers_one_runs_a_batch(tmp_path: Path) -> None:
    lines = [line(str(n), f"{n}") for n in range(40)]
    async with batching(tmp_path) as (one, first), batching(tmp_path) as (two, second):
        batch = await begun(one, jsonl(lines))
        done = await ended(two, batch)
        assert [each["custom_id"] for each in await content(two, done["output_file_id"])] == [
            str(n) for n in range(40)
        ]
        counts = [b'outcome="done"} 40.0' in each.metrics.text() for each in (first, second)]
        assert sorted(counts) == [False, True]
        slow = await begun(one, jsonl([line(str(n), "!count 100000") for n in range(8)]))
        await seen(one, slow, lambda it: it["status"] == "in_progress")
        await two.post(f"/v1/batches/{slow['id']}/cancel")
        assert (await ended(one, slow))["status"] == "cancelled"


def test_openai_s_client_runs_a_batch_unchanged(tmp_path: Path) -> None:
    with live(tmp_path) as server, OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        file = client.files.create(
            file=("in.jsonl", jsonl([line("a", "one"), line("b", "two")])),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert client.files.retrieve(file.id).bytes == file.bytes
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"a": "b"},
        )
        until = time.monotonic() + 60
        while batch.status != "completed" and time.monotonic() < until:
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 2
        assert batch.output_file_id is not None
        found = [orjson.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in found] == ["a", "b"]
        assert [each.id for each in client.batches.list(limit=1)] == [batch.id]
        assert {each.id for each in client.files.list()} == {file.id, batch.output_file_id}
        assert client.files.delete(file.id).deleted


@pytest.mark.parametrize("name", ["../../etc/lines.jsonl", "C:\\\\temp\\\\lines.jsonl", "/lines.jsonl"])
async def test_a_file_s_name_leads_to_no_folder(tmp_path: Path, name: str) -> None:
    form = '--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--B\r\n' + (
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\nx\r\n--B--\r\n'
    )
    async with batching(tmp_path) as (http, _):
        kind = {"content-type": "multipart/form-data; boundary=B"}
        made = (await http.post("/v1/files", content=form.encode(), headers=kind)).json()
        assert made["filename"] == "lines.jsonl"
        got = await http.get(f"/v1/files/{made['id']}/content")
        assert got.headers["content-disposition"] == 'attachment; filename="lines.jsonl"'
