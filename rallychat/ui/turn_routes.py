"""Routes of the page for turns: say, answer again, edit, continue, stop, switch branches, watch.

Each change answers with what to show: `html` replaces every message behind `after` (None: all of them). Where `html` is
None the turn was begun by an earlier request with the same idempotency key: the conversation is to be opened as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.api.idempotency import IdempotencyKey, announce, key_of, response_of
from rallychat.catalog.types import SamplingFacts
from rallychat.chat import ChatService
from rallychat.errors import NotFound, RallyChatError
from rallychat.runs import Run
from rallychat.store import StoredMessage
from rallychat.store.types import message_of
from rallychat.ui import fragments, transcript
from rallychat.ui.door import PageRoute
from rallychat.ui.streaming import event, watch

_MESSAGE_LENGTH = 1_000_000
Begun = tuple[Run, str | None]
"""A turn, and the message behind which it is shown."""


class Said(BaseModel):
    """A message. Without a conversation a new one begins, with this system prompt, model and sampling."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=_MESSAGE_LENGTH)
    conversation: str | None = None
    system: str = ""
    model: str | None = None
    sampling: SamplingFacts = SamplingFacts()


class Edited(BaseModel):
    """Another text for a message."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=_MESSAGE_LENGTH)


class Turns:
    """Turns as the page starts and watches them."""

    def __init__(self, service: ChatService) -> None:
        self.service = service

    async def say(self, said: Said, key: str | None) -> Begun:
        """Says it in a conversation; in a new one, which is not kept if it cannot be said."""
        if said.conversation is not None:
            tip = (await self.service.store.get(said.conversation)).tip_id
            return await self.service.turn(said.conversation, said.text, key=key), tip
        model = self.service.named(said.model).id if said.model else None
        begun = await self.service.store.create(
            system=said.system, model=model, sampling=said.sampling.value()
        )
        try:
            return await self.service.turn(begun.id, said.text, key=key), None
        except RallyChatError:
            await self.service.store.delete(begun.id)
            raise

    async def again(self, message_id: str, key: str | None) -> Begun:
        """Another answer beside this one."""
        run = await self.service.regenerate(message_id, key=key)
        return run, run.user_message_id

    async def edit(self, message_id: str, text: str, key: str | None) -> Begun:
        """Another message beside this one, and its answer."""
        parent = (await self.service.store.message(message_id)).parent_id
        return await self.service.edit(message_id, text, key=key), parent

    async def go_on(self, message_id: str, key: str | None) -> Begun:
        """More of an answer that ended early."""
        run = await self.service.continue_answer(message_id, key=key)
        return run, run.user_message_id

    async def once(self, request: Request, begin: Callable[[str | None], Awaitable[Begun]]) -> dict[str, Any]:
        """What a turn shows that has begun; one that the request's key leads to is not begun again."""
        if (response := response_of(request)) is not None:
            return await self.found(message_of(response))
        run, after = await begin(key_of(request))
        announce(request)
        return {**await self._changed(run.conversation_id, after), "run": run.id}

    async def found(self, message_id: str) -> dict[str, Any]:
        """Where an answer is that was begun before, and the run that still makes it."""
        row = await self.service.store.message(message_id)
        run = await self.service.follow(row.id) if row.status == "running" else None
        return {
            "conversation": row.conversation_id,
            "after": None,
            "html": None,
            "run": run.id if run else None,
        }

    async def switch(self, message_id: str) -> dict[str, Any]:
        """The branch through this message."""
        row = await self.service.store.message(message_id)
        await self.service.store.select(row.conversation_id, message_id)
        return await self._changed(row.conversation_id, row.parent_id)

    async def watch(self, run: Run, row: StoredMessage) -> AsyncGenerator[bytes, None]:
        """The run of a message as server-sent events, then the finished message, unless it was deleted meanwhile."""
        name = transcript.model_name(self.service, row.model)
        async for sent in watch(run, model_name=name):
            yield sent
        try:
            view = await transcript.one(self.service, row.id)
        except NotFound:
            return
        html = await asyncio.to_thread(fragments.messages, [view])
        yield event("end", {"html": html, "message": row.id})

    async def _changed(self, conversation_id: str, after: str | None) -> dict[str, Any]:
        views = await transcript.since(self.service, conversation_id, after)
        html = await asyncio.to_thread(fragments.messages, views)
        return {"conversation": conversation_id, "after": after, "html": html, "run": None}


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    turns = Turns(service)

    @routes.post("/turns")
    async def say(request: Request, said: Said, idempotency_key: IdempotencyKey = None) -> dict[str, Any]:
        return await turns.once(request, lambda key: turns.say(said, key))

    @routes.post("/messages/{message_id}/regenerate")
    async def regenerate(
        request: Request, message_id: str, idempotency_key: IdempotencyKey = None
    ) -> dict[str, Any]:
        return await turns.once(request, lambda key: turns.again(message_id, key))

    @routes.post("/messages/{message_id}/edit")
    async def edit(
        request: Request, message_id: str, edited: Edited, idempotency_key: IdempotencyKey = None
    ) -> dict[str, Any]:
        return await turns.once(request, lambda key: turns.edit(message_id, edited.text, key))

    @routes.post("/messages/{message_id}/continue")
    async def go_on(
        request: Request, message_id: str, idempotency_key: IdempotencyKey = None
    ) -> dict[str, Any]:
        return await turns.once(request, lambda key: turns.go_on(message_id, key))

    @routes.post("/messages/{message_id}/select")
    async def select(message_id: str) -> dict[str, Any]:
        return await turns.switch(message_id)

    @routes.get("/messages/{message_id}/text")
    async def text(message_id: str) -> dict[str, str]:
        """What was said, as it was said: for Copy and Edit."""
        return {"text": (await service.store.message(message_id)).text}

    @routes.post("/runs/{run_id}/stop")
    async def stop(run_id: str) -> dict[str, Any]:
        await service.stop(run_id)
        return {"stopped": run_id}

    @routes.get("/runs/{run_id}/stream")
    async def stream(run_id: str) -> Response:
        run = service.runs.get(run_id)
        row = await service.store.message(run.message_id)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(turns.watch(run, row), media_type="text/event-stream", headers=headers)

    return routes
