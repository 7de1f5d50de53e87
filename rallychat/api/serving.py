"""What the routes get from the app they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi import Request

if TYPE_CHECKING:
    from rallychat.catalog import Model
    from rallychat.chat import ChatService


def service_of(request: Request) -> ChatService:
    """The service `create_app` was given."""
    return cast("ChatService", request.app.state.service)


def started_at(request: Request) -> int:
    """When the app was made, in seconds since the epoch."""
    return cast(int, request.app.state.started_at)


def model_named(service: ChatService, name: str | None) -> Model:
    """The default model, or the catalog's of this name.

    Paths and hub files are for whoever starts the server: a request must not make it open or fetch any file.

    Raises:
        NotFound: the catalog has none of this name.
    """
    if name is None or name == service.settings.model:
        return service.resolve(None)
    return service.catalog.find(name)
