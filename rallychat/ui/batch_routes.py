"""The page of one's own batches: how far each is, its results, and the form that begins one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response

from rallychat.api.batches import WINDOW, BatchRequest, runner_of
from rallychat.api.errors import Problem, Refusal, problem_of
from rallychat.api.files import BATCH_DAYS, keep_upload
from rallychat.api.uploads import discard, receive
from rallychat.chat import ChatService
from rallychat.errors import InvalidRequest, RallyChatError
from rallychat.store.batches import StoredBatch
from rallychat.ui.account_door import FormRoute, led, shown

_SHOWN = 20
_ENDPOINTS: Sequence[str] = BatchRequest.model_fields["endpoint"].annotation.__args__  # type: ignore[union-attr]
_STATES: Mapping[str, str] = {
    "validating": "Its lines are looked at",
    "failed": "Not begun: the file is wrong",
    "in_progress": "Being answered",
    "finalizing": "Its files are written",
    "completed": "Done",
    "expired": "Out of time",
    "cancelling": "Being cancelled",
    "cancelled": "Cancelled",
}


@dataclass(frozen=True, slots=True)
class BatchView:
    """One batch as the page shows it."""

    batch: StoredBatch
    filename: str

    @property
    def state(self) -> str:
        """In a person's words."""
        return _STATES[self.batch.status]

    @property
    def done(self) -> int:
        """Lines that are answered, well or not."""
        return self.batch.completed + self.batch.failed

    @property
    def wrong(self) -> Sequence[str]:
        """What is wrong with the file, the first of it."""
        found = [*(self.batch.errors or ())][:5]
        return [
            f"Line {each['line']}: {each['message']}" if each.get("line") else each["message"]
            for each in found
        ]


class Batches:
    """The page."""

    def __init__(self, service: ChatService) -> None:
        self._store = service.store
        self._service = service

    async def page(
        self, request: Request, after: str | None, status: int | Problem = 200, *, wrong: str = ""
    ) -> Response:
        """Batches, the newest first, with what was just said of one."""
        found = await self._store.batches.list(limit=_SHOWN + 1, after=after)
        views = [BatchView(batch, await self._name(batch)) for batch in found[:_SHOWN]]
        return shown(
            request,
            "batches",
            status,
            batches=views,
            older=found[_SHOWN - 1].id if len(found) > _SHOWN else "",
            waits=any(batch.open for batch in found) and not wrong,
            wrong=wrong,
        )

    async def begin(self, request: Request) -> None:
        """Keeps the file that was sent, and begins a batch of its lines."""
        files = self._store.files
        upload = await receive(request, files)
        try:
            endpoint = upload.fields.get("endpoint", "")
            if endpoint not in _ENDPOINTS:
                raise InvalidRequest("A batch leads to one of the routes of the form.", param="endpoint")
            kept = await keep_upload(self._service, upload, "batch", timedelta(days=BATCH_DAYS))
        except BaseException:
            discard(upload, files)
            raise
        await self._store.batches.create(
            input_file_id=kept.id, endpoint=endpoint, completion_window="24h", lives=WINDOW
        )
        runner_of(request).wake()

    async def _name(self, batch: StoredBatch) -> str:
        try:
            return (await self._store.files.get(batch.input_file_id)).filename
        except RallyChatError:
            return "a file that is gone"


def router(service: ChatService) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=FormRoute)
    batches = Batches(service)

    @routes.get("/batches")
    async def mine(request: Request, after: str | None = None) -> Response:
        return await batches.page(request, after)

    @routes.get("/batches/new")
    async def form(request: Request) -> Response:
        return _form(request)

    @routes.post("/batches")
    async def begin(request: Request) -> Response:
        try:
            await batches.begin(request)
        except Refusal as exc:
            return _form(request, exc.problem, wrong=exc.problem.message)
        except RallyChatError as exc:
            return _form(request, problem_of(exc), wrong=exc.sentence)
        return led(request, "/batches")

    @routes.post("/batches/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> Response:
        try:
            await service.store.batches.cancel(batch_id)
        except RallyChatError as exc:
            return await batches.page(request, None, problem_of(exc), wrong=exc.sentence)
        runner_of(request).wake()
        return led(request, "/batches")

    return routes


def _form(request: Request, status: int | Problem = 200, *, wrong: str = "") -> Response:
    values: dict[str, Any] = {"endpoints": _ENDPOINTS, "wrong": wrong}
    return shown(request, "batch_new", status, **values)
