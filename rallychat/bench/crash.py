"""`rallychat bench crash`: kills the engine, then the server, amid many answers, and counts what is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.errors import EngineUnavailable
from rallychat.messages import ReasoningDelta, TextDelta
from rallychat.runs import Run
from rallychat.settings import Settings
from rallychat.store import StoredMessage

QUESTION = "Tell story number {number}: a long one, with many people in it."

WORDS = 60
"""Characters an answer has, on average, when its maker is killed."""


async def run_crash(settings: Settings, *, streams: int = 8) -> list[dict[str, Any]]:
    """One row per kind of death.

    Columns: `killed`, `streams`, `user_messages_lost`, `answers_lost`, `not_marked` (answers that do not say that
    they were interrupted, though they had not ended), `seen_characters` (by viewers, in all), `lost_characters` (seen
    but not stored), `next_first_token_s` (from the kill of the worker, or from the restart of the server, to the first
    token of the next answer).

    Raises:
        EngineUnavailable: all answers had ended before anything could be killed.
    """
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as name:
        mine = apart(settings, Path(name)).model_copy(update={"slots": streams, "window": 1024})
        return [await _worker_dies(mine, streams), await _server_dies(mine, streams)]


async def _worker_dies(settings: Settings, streams: int) -> dict[str, Any]:
    async with ChatService.open(settings) as service:
        await service.load(settings.model)
        runs = []
        for number in range(streams):
            conversation = await service.store.create()
            runs.append(await service.turn(conversation.id, QUESTION.format(number=number)))
        await asyncio.gather(*map(_some_text, runs))
        engine = service.pool.find(service.resolve(None).id)
        if engine is None or engine.pid is None:
            raise EngineUnavailable("There is no engine to kill.")
        seen = _Seen(conversations=[run.conversation_id for run in runs])
        seen.ended = {run.message_id for run in runs if run.end is not None}
        seen.amid(streams)
        os.kill(engine.pid, signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.gather(*(run.wait() for run in runs))
        first = await _next_answer(service, runs[0].conversation_id)
        seen.characters = {run.message_id: len(run.text) for run in runs}
        return await _row("worker", service, seen, seconds=first - killed)


@dataclass
class _Seen:
    """What viewers saw until the kill."""

    characters: dict[str, int] = field(default_factory=dict)
    """By message."""
    ended: set[str] = field(default_factory=set)
    """Messages whose answers had ended by themselves."""
    conversations: list[str] = field(default_factory=list)

    def of(self, line: bytes) -> None:
        """A line of `rallychat.bench.victim`; one that its death cut off tells nothing."""
        if not line.endswith(b"\n"):
            return
        told = json.loads(line)
        self.characters[told["message"]] = told["seen"]
        if told["ended"]:
            self.ended.add(told["message"])
        if told["conversation"] not in self.conversations:
            self.conversations.append(told["conversation"])

    def enough(self, streams: int) -> bool:
        """Now is the time: all have begun and say something, and one more word could be an answer's last."""
        begun = {message for message, count in self.characters.items() if count} | self.ended
        said = sum(self.characters.values())
        return len(begun) == streams and (said >= WORDS * streams or bool(self.ended))

    def amid(self, streams: int) -> None:
        """Raises EngineUnavailable: no answer was still growing."""
        if len(self.ended) == streams:
            raise EngineUnavailable(
                "All answers had ended before anything could be killed.", hint="take a model that says more"
            )


async def _server_dies(settings: Settings, streams: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "rallychat.bench.victim"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    given = {
        "data_dir": str(settings.data_dir),
        "slots": settings.slots,
        "window": settings.window,
        "model": settings.model,
    }
    turns = [{"text": QUESTION.format(number=number)} for number in range(streams)]
    seen = _Seen()
    try:
        process.stdin.write(("\n".join(map(json.dumps, [given, *turns])) + "\n\n").encode())
        while not seen.enough(streams):
            line = await process.stdout.readline()
            if not line:
                raise EngineUnavailable("The server that was to be killed ended by itself.")
            seen.of(line)
    finally:
        if process.returncode is None:
            process.kill()
        async for line in process.stdout:  # the last that somebody saw is all that can be lost
            seen.of(line)
        await process.wait()
    seen.amid(streams)
    restarted = time.monotonic()
    async with ChatService.open(settings) as service:
        first = await _next_answer(service, seen.conversations[0])
        return await _row("server", service, seen, seconds=first - restarted)


async def _some_text(run: Run) -> None:
    async for event in run.attach():
        if isinstance(event, TextDelta) and len(run.text) > WORDS:
            return


async def _next_answer(service: ChatService, conversation_id: str) -> float:
    """When the first token of the next answer came."""
    run = await service.turn(conversation_id, "And then?", sampling=Sampling(max_tokens=8))
    async for event in run.attach():
        if isinstance(event, TextDelta | ReasoningDelta):
            break
    first = time.monotonic()
    await run.wait()
    return first


async def _row(killed: str, service: ChatService, seen: _Seen, *, seconds: float) -> dict[str, Any]:
    counts, users = seen.characters, 0
    stored: dict[str, StoredMessage] = {}
    for conversation in seen.conversations:
        path = await service.store.path(conversation)
        users += any(row.role == "user" for row in path[:2])
        stored |= {row.id: row for row in path if row.id in counts}
    answers = sum(row.text != "" or not counts[row.id] for row in stored.values())
    cut = [row for row in stored.values() if row.id not in seen.ended]
    return {
        "killed": killed,
        "streams": len(counts),
        "user_messages_lost": len(counts) - users,
        "answers_lost": len(counts) - answers,
        "not_marked": sum(row.finish_reason != "interrupted" for row in cut),
        "seen_characters": sum(counts.values()),
        "lost_characters": sum(
            max(0, n - len(stored[id_].text)) for id_, n in counts.items() if id_ in stored
        ),
        "next_first_token_s": round(seconds, 2),
    }
