"""`rallychat bench page`: what one streamed update of the page costs the server, in a short and in a long chat.

The same answer of the echo engine is streamed into a chat of 2 and one of 400 messages, in turn. Beside it the
usual way of a Gradio chat, with the same texts: at each update the whole history is made into a gr.Chatbot's value,
and what differs from the value before is found and sent.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson

from rallychat.bench.folders import alone
from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.messages import Message, Text, Timings, Usage
from rallychat.settings import Settings
from rallychat.ui.streaming import LiveView
from rallychat.ui.turn_routes import Turns

PARAGRAPH: Final = "A sentence about **something** with `code` in it, long enough to fill a line or two. " * 3
ANSWER: Final = f"{PARAGRAPH}\n\n- one point\n- another point\n\n```python\nprint('hello')\n```\n\n" * 3


@dataclass
class Measured:
    """What was seen of one chat length, over all rounds."""

    page_ms: list[float] = field(default_factory=list)
    page_bytes: list[int] = field(default_factory=list)
    chatbot_ms: list[float] = field(default_factory=list)
    chatbot_bytes: list[int] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)


async def run_page(
    settings: Settings, *, messages: Sequence[int] = (2, 400), rounds: int = 3
) -> list[dict[str, Any]]:
    """One row per chat length and way.

    Columns: `messages`, `way`, `updates`, `cpu_ms_per_update` (median CPU time to make one update),
    `bytes_per_update` (median), `server_cpu_ms_per_update` (all CPU of the serving process from the first update
    to the last, engine traffic and storing included; only measured for the page).
    """
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as folder:
        scripted(Path(folder), "bench", f"delay_ms = 2\nreplies = [{orjson.dumps(ANSWER).decode()}]")
        own = alone(settings, Path(folder)).model_copy(update={"model": "bench"})
        async with ChatService.open(own) as service:
            seen = {count: Measured() for count in messages}
            await _round(service, 2, Measured())  # the first answer starts the engine and warms the code
            for _ in range(rounds):
                for count in messages:
                    await _round(service, count, seen[count])
    return [row for count in messages for row in _rows(count, seen[count])]


def _rows(count: int, measured: Measured) -> list[dict[str, Any]]:
    ways: tuple[tuple[str, list[float], list[int], list[float]], ...] = (
        ("page", measured.page_ms, measured.page_bytes, measured.server_ms),
        ("gr.Chatbot", measured.chatbot_ms, measured.chatbot_bytes, []),
    )
    return [
        {
            "messages": count,
            "way": way,
            "updates": len(spent),
            "cpu_ms_per_update": round(statistics.median(spent), 3),
            "bytes_per_update": round(statistics.median(sizes)),
            "server_cpu_ms_per_update": round(statistics.median(server), 2) if server else None,
        }
        for way, spent, sizes, server in ways
    ]


async def _round(service: ChatService, count: int, measured: Measured) -> None:
    """Streams one answer into a chat of `count` messages, then makes its updates again, each way alone."""
    conversation_id, history = await _chat(service, count)
    run = await service.turn(conversation_id, "Go on.")
    texts: list[str] = []
    clock: list[float] = []
    row = await service.store.message(run.message_id)
    async with aclosing(Turns(service).watch(run, row)) as stream:
        async for sent in stream:
            if sent.startswith(b"event: grow"):
                texts.append(run.text)
                clock.append(time.process_time())
    if len(clock) > 1:
        measured.server_ms.append((clock[-1] - clock[0]) * 1000 / (len(clock) - 1))
    view = LiveView("Bench")
    for before, text in pairwise(["", *texts]):
        start = time.thread_time()
        update = view.grow("answer", text[len(before) :])
        measured.page_ms.append((time.thread_time() - start) * 1000)
        measured.page_bytes.append(len(update))
    chatbot, diff = _gradio()
    last: Any = None
    for text in texts:
        start = time.thread_time()
        now = chatbot.postprocess([*history, _said("assistant", text)]).model_dump()
        data = orjson.dumps(now if last is None else diff(last, now))
        measured.chatbot_ms.append((time.thread_time() - start) * 1000)
        measured.chatbot_bytes.append(len(data))
        last = now


async def _chat(service: ChatService, count: int) -> tuple[str, list[dict[str, str]]]:
    """A conversation that will have `count` messages with the next turn, and what was said in it so far."""
    store = service.store
    conversation = await store.create(title="bench")
    tip: str | None = None
    history: list[dict[str, str]] = []
    for number in range(count // 2 - 1):
        question, answer = f"Question {number}: {PARAGRAPH}", f"Answer {number}: {PARAGRAPH}"
        user = Message.of("user", question)
        _, row = await store.answers.begin(conversation.id, parent_id=tip, user=user, model="bench")
        await store.answers.finish(
            row.id, parts=(Text(answer),), reason="stop", usage=Usage(), timings=Timings()
        )
        tip = row.id
        history += [_said("user", question), _said("assistant", answer)]
    return conversation.id, [*history, _said("user", "Go on.")]


def _gradio() -> tuple[Any, Callable[[Any, Any], Any]]:
    """A Chatbot, and how Gradio finds what it sends of a generator's values after the first."""
    import rallychat.ui.shell  # noqa: F401 - switches Gradio's telemetry off before Gradio is imported

    import gradio as gr  # isort: skip
    from gradio.utils import diff  # isort: skip

    return gr.Chatbot(), diff


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
