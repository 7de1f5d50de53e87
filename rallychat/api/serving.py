"""What the routes get from the app they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi import Request

from rallychat.errors import Conflict

if TYPE_CHECKING:
    from rallychat.catalog import Model
    from rallychat.chat import ChatService


def service_of(request: Request) -> ChatService:
    """The service `create_app` was given."""
    return cast("ChatService", request.app.state.service)


def started_at(request: Request) -> int:
    """When the app was made, in seconds since the epoch."""
    return cast(int, request.app.state.started_at)


def model_to_use(service: ChatService, name: str | None) -> Model:
    """The model of this name, if its weights are here or coming. Only the default model is fetched by asking for it.

    Raises:
        NotFound, Conflict: there is no such model, or somebody must download it first.
    """
    default = service.resolve(None)
    model = default if name == default.id else service.named(name)
    if model.id == default.id or service.is_here(model) or service.downloads.progress(model.id) is not None:
        return model
    raise Conflict(
        f"The model '{model.id}' is not on this machine yet.",
        hint=f"download it on the page, or with: rallychat models download {model.id}",
    )
