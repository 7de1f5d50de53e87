"""The model menu: every model's card as it is now, and the downloads started from it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from rallychat.cards import ModelCard
from rallychat.catalog import Model
from rallychat.catalog.sizing import parameter_count
from rallychat.chat import ChatService
from rallychat.errors import RallyChatError, SourceCancelled
from rallychat.ui import fragments
from rallychat.ui.door import is_owner, only_keeper
from rallychat.ui.machine import Machine
from rallychat.ui.model_view import ModelCardView, menu_of, view_of


class Menu:
    """The model menu: every model's card, and the downloads started from it."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._fetching: set[asyncio.Task[None]] = set()
        self._failed: dict[str, str] = {}
        self.machine = Machine.here()

    async def shown(self, using: str | None) -> dict[str, Any]:
        """How far every model is; of the one in use also what the page needs to know before a turn.

        Asked often, so it is small: cards are asked for one by one, when their state has changed.
        """
        chosen = self._in_use(using)
        cards = await self._cards(chosen)
        return {
            "using": chosen.id,
            "default": self._in_use(None).id,
            "defaults": self._service.sampling(chosen).as_dict(),
            "examples": list(chosen.examples),
            "models": [_state(view) for view in cards],
        }

    async def page(self, using: str | None) -> str:
        """The landing page: every model's card, by size."""
        cards = await self._cards(self._in_use(using))
        sizes = {card.id: parameter_count(self._service.named(card.id)) for card in cards}
        view = menu_of(cards, self.machine, sizes, editable=is_owner(self._service.settings))
        return await asyncio.to_thread(fragments.menu, view)

    def card(self, name: str) -> str:
        """One model's card as it is now."""
        return fragments.model_card(self._view(self._service.card(name)))

    def load(self, name: str) -> str:
        """Fetches if needed, and loads, in the background."""
        model = self._service.named(name)
        if not self._service.is_here(model):
            only_keeper()
        self._failed.pop(model.id, None)
        self._service.prepare(model.id)
        return model.id

    def fetch(self, name: str) -> str:
        """Fetches in the background."""
        model = self._service.named(name)
        self._failed.pop(model.id, None)
        task = asyncio.create_task(self._fetch(model), name=f"download {model.id}")
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)
        return model.id

    async def _fetch(self, model: Model) -> None:
        try:
            await self._service.downloads.ensure(model)
        except SourceCancelled:
            return
        except RallyChatError as exc:
            self._failed[model.id] = str(exc)

    def _in_use(self, name: str | None) -> Model:
        try:
            return self._service.named(name)
        except RallyChatError:  # the conversation's model has left the catalog
            return self._service.resolve(None)

    def state(self, name: str) -> str:
        """What of a model's review page follows its state."""
        return fragments.model_state(self._view(self._service.card(name)))

    def view(self, name: str) -> ModelCardView:
        """The same, to be shown elsewhere."""
        return self._view(self._service.card(name))

    async def _cards(self, chosen: Model) -> list[ModelCardView]:
        """Every card; that of the model in use also if the menu hides it."""
        cards = await self._service.models()
        if all(each.model.id != chosen.id for each in cards):
            cards = [*cards, self._service.card(chosen.id)]
        return [self._view(each) for each in cards]

    def _view(self, each: ModelCard) -> ModelCardView:
        noted = replace(each, note=each.note or self._failed.get(each.model.id, ""))
        return view_of(noted, self._service.catalog.family(each.model), self.machine)


def _state(view: ModelCardView) -> dict[str, Any]:
    return {
        "id": view.id,
        "name": view.name,
        "state": view.state,
        "state_text": view.state_text,
        "fraction": view.fraction,
        "note": view.note,
    }
