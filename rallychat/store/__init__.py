"""What is remembered: conversations, their messages as a tree, preferences. See docs/storage.md."""

from __future__ import annotations

from rallychat.store.idempotency import KeyStore
from rallychat.store.store import ConversationStore
from rallychat.store.types import Conversation, Memory, StoredMessage, StoredResponse, TokenSpan

__all__ = [
    "Conversation",
    "ConversationStore",
    "KeyStore",
    "Memory",
    "StoredMessage",
    "StoredResponse",
    "TokenSpan",
]
