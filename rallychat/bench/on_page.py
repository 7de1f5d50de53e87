"""A person on the page: says things by the page's routes, and says again what got no reply."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any

import httpx

from rallychat.bench.client import Cut, Refused, Sent

LOST = 0.3
"""The share of replies that are lost on their way, whatever else fails."""
LOOK = 0.1
"""Seconds between two looks at whether the answer has ended."""


class OnPage:
    """A `Line`. A conversation begins with its first message; the answer is read when it has ended.

    As `response` each message gets the conversation that it is in.
    """

    def __init__(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        self._http = http
        self._rng = rng

    async def events(self, sent: Sent) -> AsyncGenerator[dict[str, Any]]:
        """See `Line`."""
        try:
            if not sent.response:
                sent.conversation = await self._said(sent)
                yield {"sequence_number": 0, "type": "said", "response": {"id": sent.conversation}}
            while True:
                state = _read(await self._http.get(f"/ui/conversations/{sent.conversation}/state"))
                if state["run"] is None:
                    break
                await asyncio.sleep(LOOK)
            answer = answer_to(sent, await items_of(self._http, sent.conversation))
            if not sent.seen:
                text = {"type": "response.output_text.delta", "delta": text_of(answer)}
                yield {**text, "sequence_number": sent.last + 1}
            ended = "completed" if answer.get("status") == "completed" else "failed"
            yield {"sequence_number": sent.last + 1, "type": f"response.{ended}", "response": {}}
        except (httpx.HTTPError, ValueError) as exc:
            raise Cut(str(exc)) from exc

    async def _said(self, sent: Sent) -> str:
        body = {"text": sent.text, "conversation": sent.conversation or None}
        answer = await self._http.post("/ui/turns", json=body, headers={"Idempotency-Key": sent.key})
        if self._rng.random() < LOST:
            raise Cut("the reply was lost")
        return str(_read(answer)["conversation"])


def _read(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise Refused(answer.status_code, answer.text[:200])
    return answer.json()


async def items_of(http: httpx.AsyncClient, conversation: str) -> list[dict[str, Any]]:
    """The messages of a conversation, the first one first; none if it is not there."""
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"order": "asc", "limit": 100}
    while True:
        answer = await http.get(f"/v1/conversations/{conversation}/items", params=query)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return found
        page = _read(answer)
        found += [item for item in page["data"] if item["type"] == "message"]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]


async def conversations(http: httpx.AsyncClient) -> list[str]:
    """The ids of all conversations that stand in the list."""
    found: list[str] = []
    query: dict[str, Any] = {"limit": 100}
    while True:
        page = _read(await http.get("/v1/conversations", params=query))
        found += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]


def places_of(sent: Sent, items: list[dict[str, Any]]) -> list[int]:
    """Where a message stands among the items of its conversation."""
    return [at for at, item in enumerate(items) if (item["role"], text_of(item)) == ("user", sent.text)]


def answer_to(sent: Sent, items: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The item that follows a message; empty if nothing was said."""
    following = [items[at + 1] for at in places_of(sent, items) if at + 1 < len(items)]
    return next((item for item in following if item["role"] == "assistant"), {})


def text_of(item: Mapping[str, Any]) -> str:
    """What a message item says."""
    return "".join(part.get("text", "") for part in item.get("content") or ())
