"""RallyChat: a chatbot service for open language models.

async with rallychat.open() as service:
    print(await service.ask("Give me three tips for better sleep."))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rallychat.catalog import Sampling as Sampling
    from rallychat.chat import ChatService as ChatService
    from rallychat.context.embedding import register_embedder as register_embedder
    from rallychat.context.strategies import register_strategy as register_strategy
    from rallychat.messages import Message as Message
    from rallychat.settings import Settings as Settings

__version__ = "0.1.0"
__all__ = [
    "ChatService",
    "Message",
    "Sampling",
    "Settings",
    "__version__",
    "open",
    "register_embedder",
    "register_strategy",
]

_HOMES = {
    "ChatService": "rallychat.chat",
    "Message": "rallychat.messages",
    "Sampling": "rallychat.catalog",
    "Settings": "rallychat.settings",
    "register_embedder": "rallychat.context.embedding",
    "register_strategy": "rallychat.context.strategies",
}


def __getattr__(name: str) -> Any:
    # A worker process imports this package too: it must not pay for the service.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rallychat' has no attribute '{name}'")


def open(settings: Settings | None = None) -> Any:  # noqa: A001 - `rallychat.open()` reads as it should
    """The chat service without a server: an async context manager that yields a `ChatService`."""
    from rallychat.chat import ChatService

    return ChatService.open(settings)
