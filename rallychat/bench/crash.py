"""`rallychat bench crash`: kills the engine, then the server, amid many answers, and counts what is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.errors import EngineUnavailable
from rallychat.messages import TextDelta
from rallychat.runs import Run
from rallychat.settings import Settings
from rallychat.store import StoredMessage

QUESTION = "Tell story number {number}: a long one, with many people in it."

WORDS = 60
"""Characters an answer has, on average, when its maker is killed."""


async def run_crash(settings: Settings, *, streams: int = 8) -> list[dict[str, Any]]:
    """One row per kind of death.

    Columns: `killed`, `streams`, `user_messages_lost`, `answers_lost`, `not_marked` (answers that do not say that
    they were interrupted), `seen_characters` (by viewers, in all), `lost_characters` (seen but not stored),
    `next_first_token_s` (from the kill of the worker, or from the restart of the server, to the first token of the
    next answer).
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
        os.kill(engine.pid, signal.SIGKILL)
        killed = time.monotonic()
        await asyncio.gather(*(run.wait() for run in runs))
        first = await _next_answer(service, runs[0].conversation_id)
        seen = {run.message_id: len(run.text) for run in runs}
        conversations = [run.conversation_id for run in runs]
        return await _row("worker", service, conversations, seen, seconds=first - killed)


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
    process.stdin.write("\n".join(map(json.dumps, [given, *turns])).encode())
    process.stdin.write_eof()
    seen: dict[str, int] = {}
    conversations: dict[str, None] = {}
    while len(seen) < streams or min(seen.values()) == 0 or sum(seen.values()) < WORDS * streams:
        line = await process.stdout.readline()
        if not line:
            raise EngineUnavailable("The server that was to be killed ended by itself.")
        told = json.loads(line)
        seen[told["message"]] = told["seen"]
        conversations[told["conversation"]] = None
    process.kill()
    await process.wait()
    restarted = time.monotonic()
    async with ChatService.open(settings) as service:
        first = await _next_answer(service, next(iter(conversations)))
        return await _row("server", service, list(conversations), seen, seconds=first - restarted)


async def _some_text(run: Run) -> None:
    async for event in run.attach():
        if isinstance(event, TextDelta) and len(run.text) > WORDS:
            return


async def _next_answer(service: ChatService, conversation_id: str) -> float:
    """When the first token of the next answer came."""
    run = await service.turn(conversation_id, "And then?", sampling=Sampling(max_tokens=8))
    async for event in run.attach():
        if isinstance(event, TextDelta):
            break
    first = time.monotonic()
    await run.wait()
    return first


async def _row(
    killed: str,
    service: ChatService,
    conversations: Sequence[str],
    seen: dict[str, int],
    *,
    seconds: float,
) -> dict[str, Any]:
    users, answers = 0, 0
    stored: dict[str, StoredMessage] = {}
    for conversation in conversations:
        path = await service.store.path(conversation)
        users += any(row.role == "user" for row in path[:2])
        stored |= {row.id: row for row in path if row.id in seen}
    answers = sum(row.text != "" for row in stored.values())
    return {
        "killed": killed,
        "streams": len(seen),
        "user_messages_lost": len(seen) - users,
        "answers_lost": len(seen) - answers,
        "not_marked": sum(row.finish_reason != "interrupted" for row in stored.values()),
        "seen_characters": sum(seen.values()),
        "lost_characters": sum(max(0, n - len(stored[id_].text)) for id_, n in seen.items() if id_ in stored),
        "next_first_token_s": round(seconds, 2),
    }
