"""The models of a service: found by name, brought along, fetched, loaded, unloaded, and how each is sampled.

Knows catalog, sources and pool; never sees a conversation.
"""

from __future__ import annotations

import asyncio
import logging

from rallychat.cards import ModelCard, card
from rallychat.catalog import ANY, Catalog, Model, Sampling, generation
from rallychat.choices import Choice, Choices
from rallychat.errors import Forbidden, NotHere, RallyChatError
from rallychat.identity import LOCAL, current
from rallychat.pool import Pool
from rallychat.settings import Settings
from rallychat.sources import Downloads, is_here, remove, resolve

log = logging.getLogger(__name__)


class Shelf:
    """Every model that can be talked to, and the engines of those that are.

    Args:
        catalog: what is known at the start; `bring` adds to it.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self.choices = Choices.load(settings)
        self.catalog = self.choices.over(catalog)
        self.downloads = Downloads(settings)
        self.pool = Pool(settings, self.downloads)
        self._answers = generation.read(settings.gen_config_path)
        self._summaries = generation.read(settings.gen_config_summarization_path)
        self._preparing: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Ends what is being prepared, every engine and every download."""
        for task in self._preparing:
            task.cancel()
        await asyncio.gather(*self._preparing, return_exceptions=True)
        await self.pool.aclose()
        await self.downloads.aclose()

    def resolve(self, name: str | None) -> Model:
        """The model called `name`, or the default.

        Raises:
            NotFound: none is called so; the hint names near ones.
        """
        return self.catalog.resolve(name or self.settings.model)

    def named(self, name: str | None) -> Model:
        """As `resolve`, for names that come from elsewhere: the catalog's models and the default, nothing else.

        Paths and hub files are for whoever starts the server: a request must not make it open or fetch any file.
        """
        if name is None or name == self.settings.model:
            return self.resolve(None)
        return self.catalog.find(name)

    def knows(self, name: str) -> bool:
        """Whether `named` finds it."""
        return name == self.settings.model or self.catalog.knows(name)

    async def bring(self, name: str, *, family: str | None = None) -> Model:
        """The model of any name, which is in the catalog from now on. For whoever sits at this machine only.

        Beyond what `resolve` takes: a repository of the hub (checkpoint, adapter or GGUF), which is looked at.

        Args:
            family: the prompt format, for a model that does not say it.

        Raises:
            FamilyNeeded: nothing says its prompt format; the error has the families to choose from.
            Unsupported: it could not be run here, or not safely. SourceError: the hub does not show it.
            NotFound, InvalidRequest: none is called so; it holds several files.
        """
        model = await asyncio.to_thread(resolve, name, self.catalog, self.settings, family=family)
        self.catalog = self.choices.over(self.catalog.including(model, called=name))
        return self.catalog.models[model.id]

    async def models(self) -> list[ModelCard]:
        """Every model of the menu with its state."""
        shown = [model for model in self.catalog.models.values() if not model.hidden]
        return [card(model, self.settings, self.pool, self.downloads) for model in shown]

    def card(self, name: str) -> ModelCard:
        """One model with its state, also one that the menu hides."""
        return card(self.named(name), self.settings, self.pool, self.downloads)

    async def choose(self, name: str, choice: Choice) -> None:
        """Keeps what a person chose for a model. If it is to be run in another way, its engine is freed.

        Raises:
            StoreError: it cannot be kept.
        """
        model = self.named(name)
        before = self.choices.of(model.id)
        self.catalog = self.choices.keep(model, choice, self.catalog)
        if choice.running != before.running:
            await self.pool.unload(model.id)

    async def load(self, model_id: str) -> None:
        """Fetches and loads a model, and waits until it can answer."""
        await self.pool.open(self.resolve(model_id))

    def prepare(self, model_id: str | None = None) -> None:
        """Fetches and loads a model in the background; its card tells how it goes."""
        task = asyncio.create_task(self._prepare(self.resolve(model_id)), name="prepare a model")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare(self, model: Model) -> None:
        try:
            await self.pool.open(model)
        except RallyChatError as exc:
            log.error("'%s' could not be made ready: %s", model.id, exc)

    async def unload(self, model_id: str) -> None:
        """Frees a model's engine and memory; its answers in progress are interrupted."""
        await self.pool.unload(self.resolve(model_id).id)

    async def remove(self, model_id: str) -> int:
        """Deletes a model's weights from disk; returns the bytes freed. Files you brought yourself stay."""
        model = self.resolve(model_id)
        await self.pool.unload(model.id)
        return remove(model, self.settings)

    def talked_to(self, name: str | None) -> Model:
        """The model of this name, for an answer: it is fetched for whoever may have models fetched.

        Raises:
            NotFound, InvalidRequest: as `resolve` where somebody sits at this machine, else as `named`.
            Forbidden: a member names one whose weights are not on disk.
        """
        person = current()
        model = self.resolve(name) if person == LOCAL else self.named(name)
        if person.role == "admin" or person.via == "local" or model.id == self.resolve(None).id:
            return model
        if self.is_here(model) or self.pool.find(model.id):
            return model
        raise Forbidden(f"'{model.id}' is not on this server yet.", hint="ask an admin to fetch it")

    def is_here(self, model: Model) -> bool:
        """The model's weights are on disk."""
        return is_here(model, self.settings)

    def summary_sampling(self, model: Model) -> Sampling:
        """How summaries of a conversation are sampled: by the settings, as chosen on the page, or by the family."""
        usual = generation.shipped(self.catalog.family(model).generation.summary)
        return self._summaries.over(self.choices.of(model.id).summary.value()).over(usual)

    def sampling(self, model: Model, asked: Sampling = ANY) -> Sampling:
        """How answers are sampled: as asked, by the settings, as chosen on the page, by the model or its family."""
        family = self.catalog.family(model)
        usual = family.sampling.value()
        if usual == ANY:
            usual = generation.shipped(family.generation.answer)
        return asked.over(self._answers).over(model.sampling.value()).over(usual)


def model_to_use(shelf: Shelf, name: str | None) -> Model:
    """The model of this name, if its weights are here or coming. Only the default model is fetched by asking for it.

    Raises:
        NotFound, NotHere: there is no such model, or somebody must download it first.
    """
    default = shelf.resolve(None)
    model = default if name == default.id else shelf.named(name)
    if model.id == default.id or shelf.is_here(model) or shelf.downloads.progress(model.id) is not None:
        return model
    raise NotHere(
        f"The model '{model.id}' is not on this machine yet.",
        hint=f"download it on the page, or with: rallychat models download {model.id}",
    )
