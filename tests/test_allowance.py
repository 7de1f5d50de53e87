"""What an admin allows a user holds, for all ways to ask, and for nobody else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from rallychat.accounts import Accounts
from rallychat.allowance import MINUTE, Allowances
from rallychat.bench.scripted import scripted
from rallychat.errors import Limited
from rallychat.identity import acting_as
from rallychat.store.account_types import Limits
from tests.accounts_world import World, cheap_passwords, people
from tests.api_world import chat
from tests.live_server import SLOW

__all__ = ["cheap_passwords"]


async def limited(world: World, **limits: int) -> None:
    await world.service.accounts.people.change(world.users["ben"].id, limits=Limits(**limits))


def refused(response: httpx.Response) -> bool:
    if response.status_code != 429:
        assert response.status_code == 200, response.text
        return False
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(response.headers["retry-after"]) >= 1
    return True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}),
    ],
)
async def test_more_requests_a_minute_than_are_allowed_are_refused_whatever_they_ask(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with people(tmp_path) as world:
        await limited(world, requests_per_minute=2)
        asked = [await world.ask("POST", path, as_="ben", json=body) for _ in range(3)]
        other = await world.ask("POST", path, as_="eve", json=body)
    assert [refused(response) for response in (*asked, other)] == [False, False, True, False]


async def test_many_requests_at_once_get_no_more_through_than_are_allowed(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        await limited(world, requests_per_minute=3)
        key = await world.key("ben")
        asked = (world.http.post("/v1/chat/completions", json=chat(), headers=key) for _ in range(10))
        done = await asyncio.gather(*asked)
    assert sum(refused(response) for response in done) == 7


async def test_answers_that_are_begun_at_once_are_no_more_than_may_run_at_the_same_time(
    tmp_path: Path,
) -> None:
    scripted(tmp_path, "slow", SLOW)
    async with people(tmp_path) as world:
        await limited(world, concurrent=2)
        key = await world.key("ben")
        body = {"input": "!count 5000", "model": "slow", "background": True}
        asked = (world.http.post("/v1/responses", json=body, headers=key) for _ in range(8))
        done = await asyncio.gather(*asked)
        running = world.service.runs.count_of(world.users["ben"].id)
        await world.service.runs.stop_all_of(world.users["ben"].id)
        later = await world.http.post("/v1/responses", json={"input": "Hi"}, headers=key)
    assert (running, sum(refused(response) for response in done), refused(later)) == (2, 6, False)


async def test_a_response_in_a_conversation_is_one_request(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        made = (await world.ask("POST", "/v1/conversations", as_="ben", json={})).json()["id"]
        await limited(world, requests_per_minute=2)
        body = {"input": "Hi", "conversation": made}
        asked = [await world.ask("POST", "/v1/responses", as_="ben", json=body) for _ in range(3)]
    assert [refused(response) for response in asked] == [False, False, True]


async def test_what_nobody_answers_is_no_request(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        made = (await world.ask("POST", "/v1/conversations", as_="ben", json={})).json()["id"]
        await limited(world, requests_per_minute=1)
        put = f"/v1/conversations/{made}/items", {"items": [{"role": "user", "content": "x"}]}
        ask = "/v1/responses", {"input": "Hi", "conversation": made}
        asked = [await world.ask("POST", path, as_="ben", json=body) for path, body in (put, put, ask)]
    assert [refused(response) for response in asked] == [False, False, False]


async def test_tokens_that_were_used_up_let_no_more_begin(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        await limited(world, tokens_per_minute=10)
        asked = [await world.ask("POST", "/v1/chat/completions", as_="ben", json=chat()) for _ in range(2)]
    assert [refused(response) for response in asked] == [False, True]


async def test_how_much_is_left_is_told_in_openai_s_names_in_whole_answers_streams_and_refusals(
    tmp_path: Path,
) -> None:
    async with people(tmp_path) as world:
        await limited(world, requests_per_minute=2, tokens_per_minute=5000)
        first = await world.ask("POST", "/v1/chat/completions", as_="ben", json=chat())
        second = await world.ask("POST", "/v1/responses", as_="ben", json={"input": "Hi", "stream": True})
        third = await world.ask("POST", "/v1/chat/completions", as_="ben", json=chat(stream=True))
        other = await world.ask("POST", "/v1/chat/completions", as_="eve", json=chat())
        listed = await world.ask("GET", "/v1/models", as_="ben")
    assert [response.status_code for response in (first, second, third)] == [200, 200, 429]
    used = first.json()["usage"]["total_tokens"]
    told = [
        {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit-")}
        for response in (first, second, third, other, listed)
    ]
    resets = [each.pop(f"x-ratelimit-reset-{name}") for each in told[:3] for name in ("requests", "tokens")]
    assert [each["x-ratelimit-remaining-requests"] for each in told[:3]] == ["1", "0", "0"]
    assert [each["x-ratelimit-remaining-tokens"] for each in told[:2]] == ["5000", str(5000 - used)]
    assert {each["x-ratelimit-limit-requests"] for each in told[:3]} == {"2"}
    assert {each["x-ratelimit-limit-tokens"] for each in told[:3]} == {"5000"}
    assert resets[:2] == ["1m0s", "0s"]
    assert all(re.fullmatch(r"(\d+m)?[\d.]+m?s", reset) for reset in resets)
    assert told[3:] == [{}, {}]


async def test_what_the_settings_allow_everybody_holds_where_nothing_else_was_set_for_a_user(
    tmp_path: Path,
) -> None:
    async with people(tmp_path, user_requests_per_minute=1, user_stored_bytes=100) as world:
        await limited(world, requests_per_minute=2)
        asked = [
            await world.ask("POST", "/v1/chat/completions", as_=name, json=chat())
            for name in ("ben", "ben", "ben", "eve", "eve")
        ]
        files = {"file": ("long.jsonl", b"x" * 101)}
        kept = await world.ask("POST", "/v1/files", as_="eve", files=files, data={"purpose": "batch"})
    assert [refused(response) for response in asked] == [False, False, True, False, True]
    assert (kept.status_code, kept.json()["error"]["code"]) == (403, "storage_full")


async def test_one_answer_at_a_time_is_one_and_a_minute_later_all_is_there_again(tmp_path: Path) -> None:
    async with people(tmp_path) as world:
        accounts: Accounts = world.service.accounts
        ben, now, running = world.users["ben"].id, [0.0], [1]
        allowances = Allowances(accounts.people.get, lambda _: running[0], clock=lambda: now[0])
        await limited(world, concurrent=1, requests_per_minute=1, tokens_per_minute=5)
        with acting_as(ben):
            with pytest.raises(Limited, match="1 answers running"):
                await allowances.take()
            running[0] = 0
            await allowances.take()
            allowances.spent(9)
            now[0] = MINUTE / 2
            with pytest.raises(Limited, match="1 requests a minute") as soon:
                await allowances.take()
            assert soon.value.retry_after == MINUTE / 2
            now[0] = MINUTE
            await allowances.take()
