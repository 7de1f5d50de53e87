"""One running answer as server-sent events for one viewer: only what is new, about ten times a second.

Events (data is JSON): `begin` empties the live message; `status` {"text"} says what is waited for;
`grow` {"part": "answer" | "reasoning", "finished", "keep", "tail"} as in `live.Update`; `end` {"html"} is the
finished message. The cost of an update depends on its last Markdown block, never on the conversation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Literal, assert_never

import orjson

from rallychat.messages import (
    Event,
    Failed,
    Finished,
    Loading,
    Queued,
    Reasoning,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
)
from rallychat.runs import Run
from rallychat.texts import place_in_line
from rallychat.ui.live import LiveMarkdown

INTERVAL: Final = 0.1
"""Seconds between two updates of one viewer."""
_SHARE: Final = 0.1
"""Most of one core that a viewer's updates may take: slow ones come less often."""


class LiveView:
    """What one viewer has been sent of a growing answer."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._parts = {"answer": LiveMarkdown(), "reasoning": LiveMarkdown()}

    def grow(self, part: Literal["answer", "reasoning"], text: str) -> bytes:
        """More of the answer or of what was thought."""
        update = self._parts[part].grow(text)
        change = {"part": part, "finished": update.finished, "keep": update.keep, "tail": update.tail}
        return event("grow", change)

    def of(self, happened: Event) -> bytes:
        """An event of a turn as the page gets it; empty for the last ones."""
        match happened:
            case TextDelta(text=text):
                return self.grow("answer", text)
            case ReasoningDelta(text=text):
                return self.grow("reasoning", text)
            case Queued() | Loading() | Started():
                return event("status", {"text": status_text(happened, self._model_name)})
            case Finished() | Failed():
                return b""
            case _:
                assert_never(happened)


async def watch(run: Run, *, model_name: str) -> AsyncGenerator[bytes, None]:
    """A run from its beginning, or that of the answer it continues, to its end; leaving does not stop it."""
    view = LiveView(model_name)
    yield event("begin", {"message": run.message_id})
    for part in run.before:
        match part:
            case Text(text=text):
                yield view.grow("answer", text)
            case Reasoning(text=text):
                yield view.grow("reasoning", text)
            case _:
                assert_never(part)
    async with aclosing(run.attach()) as events:
        async for happened in events:
            began = time.perf_counter()
            sent = view.of(happened)
            spent = time.perf_counter() - began
            if sent:
                yield sent
            if isinstance(happened, TextDelta | ReasoningDelta) and not run.done:
                await asyncio.sleep(max(INTERVAL, spent / _SHARE))  # attach() joins what comes meanwhile


def status_text(happened: Queued | Loading | Started, model_name: str) -> str:
    """What is waited for, in a person's words."""
    match happened:
        case Queued(position=position, seconds=seconds):
            return f"Waiting: {place_in_line(position, seconds)}"
        case Loading(stage="download", fraction=fraction):
            return f"Downloading {model_name}" + ("" if fraction is None else f", {fraction:.0%}")
        case Loading():
            return f"Loading {model_name}"
        case Started(report=report):
            fresh = report.prompt_tokens - report.reused_tokens
            return f"Reading {fresh:,} new tokens" if fresh > 256 else "Thinking"
        case _:
            assert_never(happened)


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
