"""What is remembered: conversations, their messages as a tree. See docs/storage.md."""

from __future__ import annotations

from rallychat.store.batches import BatchStore, StoredBatch
from rallychat.store.files import FileStore, StoredFile
from rallychat.store.idempotency import KeyStore
from rallychat.store.library import Shelf
from rallychat.store.store import ConversationStore
from rallychat.store.types import (
    Conversation,
    Ending,
    Entire,
    Hit,
    Imported,
    ImportedMessage,
    Memory,
    Persona,
    Share,
    StoredMessage,
    StoredResponse,
    TokenSpan,
)

__all__ = [
    "BatchStore",
    "Conversation",
    "ConversationStore",
    "Ending",
    "Entire",
    "FileStore",
    "Hit",
    "Imported",
    "ImportedMessage",
    "KeyStore",
    "Memory",
    "Persona",
    "Share",
    "Shelf",
    "StoredBatch",
    "StoredFile",
    "StoredMessage",
    "StoredResponse",
    "TokenSpan",
]
