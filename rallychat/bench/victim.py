"""A service that is killed: starts one turn per line of its input and tells on its output what a viewer saw.

Its input is JSON lines: the settings, then `{"text": …}` for each turn, then an empty line. Its output is JSON lines:
`{"conversation", "message", "seen", "ended"}` with the characters seen so far, after each event. It ends when its input
does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from rallychat.bench.folders import alone
from rallychat.chat import ChatService
from rallychat.messages import Failed, Finished, TextDelta
from rallychat.runs import Run
from rallychat.settings import Settings


async def watch(run: Run) -> None:
    """Tells what a viewer of the run sees."""
    seen = 0
    async for event in run.attach():
        seen += len(event.text) if isinstance(event, TextDelta) else 0
        ended = isinstance(event, Finished | Failed)
        line = {"conversation": run.conversation_id, "message": run.message_id, "seen": seen, "ended": ended}
        print(json.dumps(line), flush=True)


async def main() -> None:
    """Reads its turns, starts them all, and waits to be killed."""
    settings, *turns = [json.loads(line) for line in iter(sys.stdin.readline, "\n")]
    async with ChatService.open(alone(Settings.load(**settings), Path(settings["data_dir"]))) as service:
        await service.load(service.settings.model)
        runs = []
        for turn in turns:
            conversation = await service.store.create()
            runs.append(await service.turn(conversation.id, turn["text"]))
        watching = [asyncio.create_task(watch(run)) for run in runs]
        await asyncio.to_thread(sys.stdin.read)
        for each in watching:
            each.cancel()


if __name__ == "__main__":
    asyncio.run(main())
