"""Routes of the page for the review of one model: what it is, and what a person chooses for it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from rallychat.catalog import generation
from rallychat.catalog.types import SamplingFacts
from rallychat.chat import ChatService
from rallychat.choices import MOST_ASKED, NOTHING, Choice
from rallychat.context.memory import SUMMARY_PROMPT
from rallychat.errors import InvalidRequest, SettingsError
from rallychat.ui import fragments
from rallychat.ui.bring_routes import preview_of
from rallychat.ui.door import PageRoute, is_owner, noted, only_owner
from rallychat.ui.menu import Menu
from rallychat.ui.review_view import PARAMETERS, Generation, ReviewView, generation_of, origins_of
from rallychat.ui.ways import AUTO, choice_of, ways_of


class Chosen(BaseModel):
    """What is chosen for a model; all of it."""

    model_config = ConfigDict(extra="forbid")

    model: str
    way: str = Field(
        AUTO, pattern=r"^(auto|llamacpp|transformers:(auto|float32|bfloat16|float16|int8|int4))$"
    )
    multi_gpu: bool = False
    answer: SamplingFacts = SamplingFacts()
    summary: SamplingFacts = SamplingFacts()
    summary_prompt: str | None = Field(None, max_length=MOST_ASKED)


class Named(BaseModel):
    """Which model; in the body, as ids of hub files hold slashes."""

    model_config = ConfigDict(extra="forbid")

    model: str


class Written(BaseModel):
    """A generation config as YAML."""

    model_config = ConfigDict(extra="forbid")

    model: str
    part: Literal["answer", "summary"]
    text: str = Field(max_length=generation.LARGEST)


class Review:
    """The review page of each model."""

    def __init__(self, service: ChatService, menu: Menu) -> None:
        self._service = service
        self._menu = menu

    async def page(self, name: str) -> str:
        """The whole page."""
        service = self._service
        card = self._menu.view(name)
        model = service.named(name)
        family = service.catalog.family(model)
        machine = self._menu.machine
        choice = service.choices.of(model.id)
        view = ReviewView(
            card=card,
            origins=origins_of(model),
            ways=ways_of(model, choice, service.settings, machine),
            automatic=choice.running[:3] == (AUTO, AUTO, AUTO),
            gpus=len(machine.compute.memory) if machine.compute.device == "cuda" else 0,
            multi_gpu=bool(service.settings.multi_gpu if choice.multi_gpu is None else choice.multi_gpu),
            machine=machine.said(),
            family=family,
            preview=preview_of(family),
            parameters=PARAMETERS,
            generations=self._generations(name),
            summary_prompt=choice.summary_prompt,
            usual_summary_prompt=service.settings.summary_prompt or SUMMARY_PROMPT,
            examples=model.examples,
            editable=is_owner(service.settings),
        )
        return await asyncio.to_thread(fragments.review, view)

    async def choose(self, chosen: Chosen) -> dict[str, Any]:
        """Keeps it, and tells what is in force now."""
        only_owner(self._service.settings)
        before = self._service.choices.of(self._service.named(chosen.model).id)
        asked: dict[str, Any] = {
            "sampling": _beside(before.sampling, chosen.answer),
            "summary": _beside(before.summary, chosen.summary),
        }
        if chosen.summary_prompt is not None:
            asked["summary_prompt"] = chosen.summary_prompt.strip()
        choice = choice_of(chosen.way, before.model_copy(update=asked))
        multi_gpu = None if chosen.multi_gpu == self._service.settings.multi_gpu else chosen.multi_gpu
        await self._service.choose(chosen.model, choice.model_copy(update={"multi_gpu": multi_gpu}))
        return self._told(chosen.model)

    async def write(self, text: Written) -> dict[str, Any]:
        """Takes a generation config over; refuses it with the line."""
        only_owner(self._service.settings)
        before = self._service.choices.of(self._service.named(text.model).id)
        try:
            asked = SamplingFacts(**generation.parse(text.text, name="This text").as_dict())
        except SettingsError as exc:
            raise InvalidRequest(exc.message, param="text", hint=exc.hint) from exc
        field = "sampling" if text.part == "answer" else "summary"
        await self._service.choose(text.model, before.model_copy(update={field: asked}))
        return self._told(text.model)

    async def reset(self, name: str) -> None:
        """Chooses nothing."""
        only_owner(self._service.settings)
        await self._service.choose(name, NOTHING)

    def _told(self, name: str) -> dict[str, Any]:
        return {
            each.part: {"chosen": each.chosen, "in_force": each.in_force, "yaml": each.yaml}
            for each in self._generations(name)
        }

    def _generations(self, name: str) -> list[Generation]:
        service = self._service
        model = service.named(name)
        choice: Choice = service.choices.of(model.id)
        return [
            generation_of("answer", choice.sampling.value(), service.sampling(model)),
            generation_of("summary", choice.summary.value(), service.summary_sampling(model)),
        ]


def _beside(before: SamplingFacts, asked: SamplingFacts) -> SamplingFacts:
    """What is asked for; stop strings and seed, which have no field on the page, stay."""
    return asked.model_copy(update={"stop": before.stop, "seed": before.seed})


def router(service: ChatService, menu: Menu) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    review = Review(service, menu)

    @routes.get("/models/review")
    async def page(model: str) -> HTMLResponse:
        return HTMLResponse(await review.page(model))

    @routes.post("/models/choice")
    async def choose(chosen: Chosen) -> dict[str, Any]:
        told = await review.choose(chosen)
        await noted(service, "model.choose", service.named(chosen.model).id)
        return told

    @routes.post("/models/choice/reset")
    async def reset(named: Named) -> dict[str, Any]:
        await review.reset(named.model)
        await noted(service, "model.choose", service.named(named.model).id)
        return {"reset": named.model}

    @routes.post("/models/choice/yaml")
    async def write(text: Written) -> dict[str, Any]:
        told = await review.write(text)
        await noted(service, "model.choose", service.named(text.model).id)
        return told

    return routes
