"""The web page: a Gradio Blocks frame over `ChatService`, in process. Public face: `mount`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rallychat.chat import ChatService

__all__ = ["mount"]


def mount(app: FastAPI, service: ChatService) -> FastAPI:
    """Adds the page at "/" and its routes under "/ui" to an application; routes it already has stay.

    `service` must run in the event loop that serves `app`. Gradio is imported here, so that a server
    without the page does not pay for it.
    """
    from rallychat.ui.mounting import mount_page

    return mount_page(app, service)
