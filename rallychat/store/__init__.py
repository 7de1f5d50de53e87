"""What is remembered: conversations, their messages as a tree, preferences. See docs/storage.md."""

from __future__ import annotations

from rallychat.store.idempotency import KeyStore
from rallychat.store.store import ConversationStore
from rallychat.store.types import Conversation, Memory, StoredMessage, StoredResponse, TokenSpan

<<<<<<< HEAD
__all__ = ["Conversation", "ConversationStore", "Memory", "StoredMessage", "StoredResponse", "TokenSpan"]
=======
__all__ = ["Conversation", "ConversationStore", "KeyStore", "StoredMessage", "StoredResponse", "TokenSpan"]
>>>>>>> 4c3cc38 (Responses and Conversations API; idempotency keys)
