"""System prompt, model and sampling: what a persona keeps, and a conversation has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from rallychat.api.schemas import Asked
from rallychat.catalog.types import SamplingFacts

if TYPE_CHECKING:
    from rallychat.chat import ChatService
    from rallychat.store import Conversation, Persona


class Manner(Asked):
    """How a conversation is answered; what is left out stays."""

    system: Annotated[str, Field(max_length=200_000, description="The system prompt.")] = ""
    model: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="Id of `GET /v1/models`; null: the server's default model."
    )
    sampling: SamplingFacts = Field(SamplingFacts(), description="What is null: as the model has it.")

    def manner(self, service: ChatService) -> dict[str, Any]:
        """What is given of it, as the store takes it.

        Raises:
            NotFound: no model is called so.
        """
        given = {name: getattr(self, name) for name in MANNER & self.model_fields_set}
        if "sampling" in given:
            given["sampling"] = self.sampling.value()
        if self.model is not None:
            given["model"] = service.named(self.model).id
        return given


MANNER = frozenset(Manner.model_fields)
"""The names of its fields."""


def manner_of(one: Persona | Conversation) -> dict[str, Any]:
    """What a persona keeps, or a conversation has."""
    return {"system": one.system, "model": one.model, "sampling": one.sampling.as_dict()}


def taken_over(persona: Persona, given: dict[str, Any], service: ChatService) -> dict[str, Any]:
    """A persona's manner, but for what is given beside it.

    Raises:
        NotFound: its model is not here any more, and no other is given.
    """
    sampling = persona.sampling
    if "sampling" in given:
        sampling = given["sampling"].over(sampling)
    manner = {"system": persona.system, "model": persona.model} | given | {"sampling": sampling}
    if "model" not in given and persona.model is not None:
        manner["model"] = service.named(persona.model).id
    return manner
