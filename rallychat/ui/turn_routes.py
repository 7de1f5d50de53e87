"""Routes of the page for turns: say, answer again, edit, continue, stop, switch branches, watch.

Each change answers with what to show: `html` replaces every message behind `after` (None: all of them).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.catalog.types import SamplingFacts
from rallychat.chat import ChatService
from rallychat.errors import NotFound, RallyChatError
from rallychat.runs import Run
from rallychat.store import StoredMessage
from rallychat.ui import fragments, transcript
from rallychat.ui.door import PageRoute
from rallychat.ui.streaming import event, watch

_MESSAGE_LENGTH = 1_000_000


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

    async def say(self, said: Said) -> dict[str, Any]:
        """Says it in a conversation; in a new one, which is not kept if it cannot be said."""
        if said.conversation is not None:
            tip = (await self.service.store.get(said.conversation)).tip_id
            return await self.shown(await self.service.turn(said.conversation, said.text), after=tip)
        model = self.service.named(said.model).id if said.model else None
        begun = await self.service.store.create(
            system=said.system, model=model, sampling=said.sampling.value()
        )
        try:
            run = await self.service.turn(begun.id, said.text)
        except RallyChatError:
            await self.service.store.delete(begun.id)
            raise
        return await self.shown(run, after=None)

    async def again(self, message_id: str) -> dict[str, Any]:
        """Another answer beside this one."""
        run = await self.service.regenerate(message_id)
        return await self.shown(run, after=await self._parent(run.message_id))

    async def edit(self, message_id: str, text: str) -> dict[str, Any]:
        """Another message beside this one, and its answer."""
        parent = await self._parent(message_id)
        return await self.shown(await self.service.edit(message_id, text), after=parent)

    async def go_on(self, message_id: str) -> dict[str, Any]:
        """More of an answer that ended early."""
        run = await self.service.continue_answer(message_id)
        return await self.shown(run, after=await self._parent(message_id))

    async def switch(self, message_id: str) -> dict[str, Any]:
        """The branch through this message."""
        row = await self.service.store.message(message_id)
        await self.service.store.select(row.conversation_id, message_id)
        return await self._changed(row.conversation_id, row.parent_id)

    async def shown(self, run: Run, *, after: str | None) -> dict[str, Any]:
        """What the page puts behind `after` now that `run` has begun."""
        return {**await self._changed(run.conversation_id, after), "run": run.id}

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

    async def _parent(self, message_id: str) -> str | None:
        return (await self.service.store.message(message_id)).parent_id


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    turns = Turns(service)

    @routes.post("/turns")
    async def say(said: Said) -> dict[str, Any]:
        return await turns.say(said)

    @routes.post("/messages/{message_id}/regenerate")
    async def regenerate(message_id: str) -> dict[str, Any]:
        return await turns.again(message_id)

    @routes.post("/messages/{message_id}/edit")
    async def edit(message_id: str, edited: Edited) -> dict[str, Any]:
        return await turns.edit(message_id, edited.text)

    @routes.post("/messages/{message_id}/continue")
    async def go_on(message_id: str) -> dict[str, Any]:
        return await turns.go_on(message_id)

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
