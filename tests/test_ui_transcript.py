"""What the page shows of a conversation that goes on while it is read, and what a link shows of one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rallychat.chat import ChatService
from rallychat.messages import ENDED_EARLY, Text
from rallychat.store import StoredMessage
from rallychat.ui import fragments
from rallychat.ui.transcript import _views
from rallychat.ui.views import MessageView
from tests.api_world import settings


async def test_an_answer_that_ended_after_its_row_was_read_is_shown_as_it_is(tmp_path: Path) -> None:
    async with ChatService.open(settings(tmp_path)) as service:
        chat = (await service.store.create()).id
        await (await service.turn(chat, "hello")).wait()
        rows = await service.store.path(chat)
        before = replace(rows[-1], status="running", parts=(), finish_reason=None)
        (view,) = await _views(service, [before], tip_id=before.id)
    assert (view.message.text, view.message.status, view.notice) == ("hello", "complete", None)


def test_a_link_shows_of_an_answer_that_is_not_whole_why_and_no_words_of_the_server() -> None:
    whole = StoredMessage.unstored("msg_1", "assistant", (Text("Half"),), created_at=datetime.now(UTC))
    for reason, told in ENDED_EARLY.items():
        answer = replace(whole, finish_reason=reason, error="secret")
        shown = fragments.shell("share", title="Terns", views=[MessageView(answer, "Echo")])
        assert told in shown
        assert "secret" not in shown
    assert "notice" not in fragments.shell("share", title="Terns", views=[MessageView(whole, "Echo")])
