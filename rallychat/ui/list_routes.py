"""Routes of the page for the list of conversations: shelves, folders, what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from rallychat.chat import ChatService
from rallychat.store import Conversation, Shelf
from rallychat.ui import fragments
from rallychat.ui.door import PageRoute
from rallychat.ui.views import Folder, ListedConversation, by_day, line, utc_now

_LISTED = 40
_PINNED = 100
_FOUND = 50
_OPEN = 20


class Lists:
    """Conversations as the sidebar lists them."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._library = service.store.library

    async def first(self, opened: Sequence[str], utc_offset: int) -> str:
        """The beginning: what is pinned, the folders with what the `opened` ones hold, the newest of the rest."""
        pinned = await self._library.list(Shelf(pinned=True), limit=_PINNED)
        names = await self._library.folders(archived=False)
        folders = [await self.folder(name) if name in opened else Folder(name) for name in names]
        return await self.part("recent", None, utc_offset, pinned=self._lines(pinned), folders=folders)

    async def part(self, shelf: str, before: str | None, utc_offset: int, **above: Any) -> str:
        """Those of a shelf behind `before`, by day."""
        recent = False if shelf == "recent" else None
        which = Shelf(pinned=recent, filed=recent, archived=shelf == "archive", trash=shelf == "trash")
        shown, older = await self._found(which, before)
        days = by_day(shown, running=self._running(shown), utc_offset=utc_offset, now=utc_now())
        return fragments.conversations(days, older=older, more=before is not None, shelf=shelf, **above)

    async def folder(self, name: str, *, before: str | None = None) -> Folder:
        """What a folder holds behind `before`."""
        shown, older = await self._found(Shelf(folder=name), before)
        return Folder(name, self._lines(shown), older)

    async def _found(self, which: Shelf, before: str | None) -> tuple[Sequence[Conversation], str | None]:
        found = await self._library.list(which, limit=_LISTED + 1, before=before)
        return found[:_LISTED], found[_LISTED - 1].id if len(found) > _LISTED else None

    def _lines(self, shown: Sequence[Conversation]) -> list[ListedConversation]:
        return [line(one, running=self._running(shown)) for one in shown]

    def _running(self, shown: Sequence[Conversation]) -> frozenset[str]:
        return frozenset(item.id for item in shown if self._service.runs.of_conversation(item.id))


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=PageRoute)
    lists = Lists(service)

    @routes.get("/conversations")
    async def listed(
        opened: Annotated[list[str], Query(alias="open", max_length=_OPEN, default_factory=list)],
        utc_offset: Annotated[int, Query(ge=-840, le=840)] = 0,
        before: str | None = None,
        shelf: Literal["recent", "archive", "trash"] = "recent",
    ) -> HTMLResponse:
        if shelf == "recent" and before is None:
            return HTMLResponse(await lists.first(opened, utc_offset))
        return HTMLResponse(await lists.part(shelf, before, utc_offset))

    @routes.get("/folder")
    async def more_of(name: str, before: str) -> HTMLResponse:
        return HTMLResponse(fragments.folder(await lists.folder(name, before=before)))

    @routes.get("/found")
    async def found(q: Annotated[str, Query(max_length=500)]) -> HTMLResponse:
        return HTMLResponse(fragments.found(await service.store.library.search(q, limit=_FOUND)))

    return routes
