"""What the page shows of a conversation that goes on while it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rallychat.chat import ChatService
from rallychat.ui.transcript import _views
from tests.api_world import settings


async def test_an_answer_that_ended_after_its_row_was_read_is_shown_as_it_is(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        chat = (await service.store.create()).id
        await (await service.turn(chat, "hello")).wait()
        rows = await service.store.path(chat)
        before = replace(rows[-1], status="running", parts=(), finish_reason=None)
        (view,) = await _views(service, [before], tip_id=before.id)
    assert (view.message.text, view.message.status, view.notice) == ("hello", "complete", None)
