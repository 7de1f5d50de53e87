"""The page of batches: begun with a file, watched, cancelled, its results taken; nobody else's."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from tests.accounts_world import World, cheap_passwords, people

__all__ = ["cheap_passwords"]
CHAT = "/v1/chat/completions"


def lines(count: int, **body: object) -> bytes:
    asked = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}], **body}
    each = [{"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": asked} for n in range(count)]
    return b"\n".join(json.dumps(line).encode() for line in each)


async def send(world: World, as_: str, content: bytes, endpoint: str = CHAT) -> httpx.Response:
    files = {"file": ("questions <b>.jsonl", content)}
    return await world.ask("POST", "/batches", as_=as_, files=files, data={"endpoint": endpoint})


async def test_a_batch_is_begun_answered_and_its_results_are_its_person_s_alone(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True, batches=True) as world:
        assert "No batches yet." in (await world.ask("GET", "/batches", as_="ben")).text
        begun = await send(world, "ben", lines(2))
        assert (begun.status_code, begun.headers["location"]) == (303, "/batches")
        shown = ""
        async with asyncio.timeout(300):
            while "Done" not in shown:
                shown = (await world.ask("GET", "/batches", as_="ben")).text
        assert "questions &lt;b&gt;.jsonl" in shown
        assert "2 of 2 lines" in shown
        assert 'http-equiv="refresh"' not in shown
        [results] = re.findall(r'href="(/v1/files/[^"]+/content)"', shown)
        answered = (await world.ask("GET", results, as_="ben")).text.splitlines()
        assert sorted(json.loads(line)["custom_id"] for line in answered) == ["r0", "r1"]
        assert (await world.ask("GET", results, as_="eve")).status_code == 404
        assert "No batches yet." in (await world.ask("GET", "/batches", as_="eve")).text


async def test_one_that_waits_is_followed_and_can_be_cancelled_by_its_person_only(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True) as world:  # nobody answers batches here
        await send(world, "ben", lines(3))
        shown = (await world.ask("GET", "/batches", as_="ben")).text
        assert 'http-equiv="refresh"' in shown
        [cancel] = re.findall(r'action="(/batches/[^"]+/cancel)"', shown)
        refused = await world.ask("POST", cancel, as_="eve")
        assert (refused.status_code, "There is no batch" in refused.text) == (404, True)
        assert (await world.ask("POST", cancel, as_="ben")).status_code == 303
        assert ">Cancel<" not in (await world.ask("GET", "/batches", as_="ben")).text
        again = await world.ask("POST", cancel, as_="ben")
        assert again.status_code in (303, 409)


@pytest.mark.parametrize(("endpoint", "status"), [("/v1/embeddings", 400), ("", 400)])
async def test_a_batch_that_leads_nowhere_is_refused_in_the_form(
    endpoint: str, status: int, tmp_path: Path
) -> None:
    async with people(tmp_path, mount=True) as world:
        refused = await send(world, "ben", lines(1), endpoint)
        assert (refused.status_code, 'role="alert"' in refused.text) == (status, True)
        plain = await world.ask("POST", "/batches", as_="ben", data={"endpoint": CHAT})
        assert (plain.status_code, 'role="alert"' in plain.text) == (415, True)
        assert "No batches yet." in (await world.ask("GET", "/batches", as_="ben")).text


async def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async with people(tmp_path, mount=True, max_file_bytes=2048, max_body_bytes=1024) as world:
        assert (await send(world, "ben", lines(40))).status_code == 413
        assert (
            await world.ask("POST", "/account/keys", as_="ben", data={"name": "x" * 5000})
        ).status_code == 413
