"""What of a conversation is shown: a part of its branch, with each message's versions and growing answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rallychat.chat import ChatService
from rallychat.errors import NotFound
from rallychat.store import StoredMessage
from rallychat.ui.views import MessageView

PAGE = 50
"""Messages fetched at once."""
_AROUND = 4
"""Messages shown before the one that is looked for."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive messages of a branch. `older`: id of the first one, if there are messages before it."""

    views: list[MessageView]
    older: str | None


async def newest(
    service: ChatService,
    conversation_id: str,
    *,
    before: str | None,
    reach: str | None = None,
    limit: int = PAGE,
) -> Part:
    """The last messages of the current branch, or the last before `before`; back to `reach`, if that is among them.

    Raises:
        NotFound: no such conversation, or `before` is not on its current branch.
    """
    path = await service.store.path(conversation_id)
    end = len(path) if before is None else _position(path, before)
    start = max(0, end - limit)
    start = next((max(0, at - _AROUND) for at, row in enumerate(path[:start]) if row.id == reach), start)
    views = await _views(service, path[start:end], tip_id=path[-1].id if path else None)
    return Part(views, path[start].id if start else None)


async def since(service: ChatService, conversation_id: str, after: str | None) -> list[MessageView]:
    """The messages of the current branch behind `after`; all of them if it is None."""
    path = await service.store.path(conversation_id)
    start = 0 if after is None else _position(path, after) + 1
    return await _views(service, path[start:], tip_id=path[-1].id if path else None)


async def one(service: ChatService, message_id: str) -> MessageView:
    """A single message."""
    row = await service.store.message(message_id)
    tip = (await service.store.get(row.conversation_id)).tip_id
    return (await _views(service, [row], tip_id=tip))[0]


def model_name(service: ChatService, model_id: str | None) -> str:
    """How a model is called, also if it has left the catalog."""
    if model_id is None:
        return "Assistant"
    model = service.catalog.models.get(model_id)
    return model.name if model else model_id


def _position(path: Sequence[StoredMessage], message_id: str) -> int:
    for position, row in enumerate(path):
        if row.id == message_id:
            return position
    raise NotFound("message", message_id, hint="reload the page")


async def _views(
    service: ChatService, rows: Sequence[StoredMessage], *, tip_id: str | None
) -> list[MessageView]:
    views: list[MessageView] = []
    for row in rows:
        run = await service.follow(row.id) if row.status == "running" else None
        ended = row.status == "running" and run is None  # since it was read
        views.append(
            MessageView(
                message=await service.store.message(row.id) if ended else row,
                model_name=model_name(service, row.model),
                siblings=await service.store.siblings(row.id),
                run_id=run.id if run else None,
                is_tip=row.id == tip_id,
            )
        )
    return views
