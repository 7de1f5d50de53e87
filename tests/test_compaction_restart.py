"""A memory that was not swapped in when the server was killed: half made, or finished, it is made after the restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.messages import Finished
from rallychat.settings import Settings

TALK = """
import asyncio, sys
from pathlib import Path
from rallychat import idle
from rallychat.chat import ChatService
from rallychat.settings import Settings


async def forever(*_, **__):
    print("amid", flush=True)
    await asyncio.Event().wait()


async def main(folder, far):
    idle.REST = 0.0
    settings = Settings(data_dir=Path(folder), model="scripted", slots=2, strategy="ledger", titles=False)
    async with ChatService.open(settings) as service:
        chat = (await service.store.create()).id
        print(chat, flush=True)
        engine = await service.pool.open(service.resolve(None))
        if far == "finished":
            service.contexts.commit = forever
        else:
            warm = engine.warm

            async def watched(ids, slot, **given):
                if slot.stale:  # the slot that the new prompt is read into
                    await warm(ids[: len(ids) // 2], slot, **given)
                    await forever()
                return await warm(ids, slot, **given)

            engine.warm = watched
        while True:
            await (await service.turn(chat, "tell me all about the harbour and the boats with lemons")).wait()
            await service.idle.settled()


asyncio.run(main(*sys.argv[1:]))
"""


def killed_amid(folder: Path, far: str) -> tuple[str, str]:
    """A server's conversation, when it was killed amid making room in it."""
    command = [sys.executable, "-c", TALK, str(folder), far]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = server.stdout.readline().strip(), server.stdout.readline().strip()
        server.kill()
    return found


@pytest.mark.parametrize("far", ["half made", "finished"])
async def test_memory_that_was_not_swapped_in_when_the_server_was_killed_is_made_after_its_restart(
    tmp_path: Path, far: str
) -> None:
    scripted(tmp_path, "scripted", "prefill_ms = 5\nbatch = 8", window=1024)
    chat, amid = killed_amid(tmp_path, far)
    assert amid == "amid"
    settings = Settings(data_dir=tmp_path, model="scripted", slots=2, strategy="ledger", titles=False)
    async with ChatService.open(settings) as service:
        assert await service.contexts.memories(chat) == []
        said = len(await service.store.path(chat))
        await service.load("scripted")
        await service.open_conversation(chat)
        await service.idle.settled()
        (memory,) = await service.contexts.memories(chat)
        end = await (await service.turn(chat, "hello again")).wait()
        assert isinstance(end, Finished)
        assert end.usage.prompt_tokens - end.usage.cached_tokens < 40
        report = (await service.store.path(chat))[-1].report
        assert report is not None
        assert report.memory == memory.version
        assert len(report.kept) + len(report.compacted) + len(report.dropped) == said + 1
