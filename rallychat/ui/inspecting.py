"""What the inspector shows of a conversation, looked up: the page draws it, the terminal prints it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from rallychat.chat import ChatService
from rallychat.context.strategies import names
from rallychat.errors import NotFound
from rallychat.store import Conversation, StoredMessage
from rallychat.ui.context_view import ContextView, Keeping, keeping_of, view_of


async def inspected(service: ChatService, conversation_id: str) -> ContextView | None:
    """What the model saw for the newest answer of the branch in view; None: nothing was said yet."""
    conversation = await service.store.get(conversation_id)
    path = await service.store.path(conversation_id)
    if not path:
        return None
    keeping = await _keeping(service, conversation)
    inspection = await service.inspect(conversation_id)
    others = await _others(service, inspection.report.elsewhere if inspection.report else ())
    return view_of(conversation_id, inspection, path, keeping, others)


async def _others(service: ChatService, ids: Sequence[str]) -> list[StoredMessage]:
    """Messages of other conversations, but for those that are gone."""
    found = []
    for message_id in ids:
        with suppress(NotFound):
            found.append(await service.store.message(message_id))
    return found


async def _keeping(service: ChatService, conversation: Conversation) -> Keeping:
    model = service.resolve(conversation.model)
    usual = service.contexts.strategy(None, model).name
    return keeping_of(
        names(),
        chosen=conversation.strategy,
        usual=usual,
        budget=conversation.budget,
        elsewhere=conversation.elsewhere,
        usually_elsewhere=service.settings.elsewhere,
        memories=await service.contexts.memories(conversation.id),
        in_force=await service.contexts.memory(conversation.id),
    )
