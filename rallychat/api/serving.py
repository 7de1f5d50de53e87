"""What the routes get from the app they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi import Request

if TYPE_CHECKING:
    from rallychat.chat import ChatService


def service_of(request: Request) -> ChatService:
    """The service `create_app` was given."""
    return cast("ChatService", request.app.state.service)


def started_at(request: Request) -> int:
    """When the app was made, in seconds since the epoch."""
    return cast(int, request.app.state.started_at)
