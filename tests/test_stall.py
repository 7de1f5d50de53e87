"""A person comes while the engine works in the background: it makes way within one engine step. Real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from rallychat import idle
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.engines.client import EngineClient
from rallychat.engines.protocol import CompletionRequest, EngineEvent, Tokens
from rallychat.latency import NEW
from rallychat.messages import Finished, Message
from rallychat.pool import Priority, Slot
from rallychat.pool.engine import SIP
from rallychat.pool.slots import SlotQueue
from rallychat.settings import Settings
from rallychat.wishes import Wish

pytestmark = pytest.mark.real

LONG = "Tell me all about the harbour, its boats with lemons, and the keeper of the light. " * 3
BRIEF = Sampling(temperature=0.0, max_tokens=4)
Said = CompletionRequest | EngineEvent


@dataclass
class Wire:
    """What the worker is asked and what it tells, in order, and whether that is a person's."""

    told: list[tuple[bool, Said]] = field(default_factory=list)
    came: int = 0
    """How much was told when a person asked for a slot the last time."""

    @property
    def background(self) -> list[Said]:
        """What the worker did in the background since then, up to the person's first token."""
        later = self.told[self.came :]
        first = next(n for n, (person, what) in enumerate(later) if person and isinstance(what, Tokens))
        return [what for person, what in later[:first] if not person]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Watched between service and worker."""
    seen, generate, slot = Wire(), EngineClient.generate, SlotQueue.slot

    async def watched(
        self: EngineClient, request: CompletionRequest, *, session: str | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        person = session is not None  # the background names none
        seen.told.append((person, request))
        async for event in generate(self, request, session=session):
            seen.told.append((person, event))
            yield event

    def asked(self: SlotQueue, ids: list[int], **given: Any) -> AbstractAsyncContextManager[Slot]:
        if given["priority"] is Priority.CHAT:
            seen.came = len(seen.told)
        return slot(self, ids, **given)

    monkeypatch.setattr(EngineClient, "generate", watched)
    monkeypatch.setattr(SlotQueue, "slot", asked)
    monkeypatch.setattr(idle, "REST", 0.0)
    return seen


async def say(service: ChatService, chat: str, text: str, wish: Wish) -> None:
    end = await (await service.turn(chat, text, sampling=BRIEF, wish=wish)).wait()
    assert isinstance(end, Finished)


async def amid(service: ChatService, wire: Wire, chat: str, work: str, wish: Wish) -> None:
    """The background is at that work when this returns."""
    at = len(wire.told)
    if work != "probe":  # a conversation that the engine has never read
        said = [Message.of("user", LONG), Message.of("assistant", LONG)] * 4
        await service.store.items.append(chat, said)
        if work == "warming":
            await service.open_conversation(chat)
        else:
            await say(service, chat, LONG, wish)
            at = len(wire.told)
    async with asyncio.timeout(240):
        while not begun(wire.told[at:], work):  # noqa: ASYNC110 - a look at the wire, which tells nobody
            await asyncio.sleep(0.001)


def begun(told: list[tuple[bool, Said]], work: str) -> bool:
    mine = [what for person, what in told if not person]
    if work == "summary":
        return any(isinstance(what, Tokens) for what in mine)
    return sum(isinstance(what, CompletionRequest) for what in mine) > 2


@pytest.mark.parametrize("work", ["warming", "compaction", "summary", "probe"])
async def test_a_person_waits_for_one_step_of_the_background_at_most(
    tmp_path: Path, smollm2_gguf: Path, wire: Wire, work: Literal["warming", "compaction", "summary", "probe"]
) -> None:
    wish = Wish(
        "summary" if work == "summary" else "ledger", 700 if work in ("compaction", "summary") else None
    )
    settings = Settings(
        data_dir=tmp_path, model=str(smollm2_gguf), slots=2, window=2048, titles=False,
        latency_factor=1.2 if work == "probe" else 0,
    )  # fmt: skip
    async with ChatService.open(settings) as service:
        chat, other = [(await service.store.create()).id for _ in range(2)]
        await service.load(settings.model)
        engine = await service.pool.open(service.resolve(None))
        await say(service, other, "Hi", wish)
        if work != "probe":
            await service.idle.settled()
        await amid(service, wire, chat, work, wish)
        before = engine.background_tokens
        await say(service, other, "And now?", wish)
        evaluated = engine.background_tokens - before
        if work in ("compaction", "summary"):
            assert await service.contexts.memories(chat) == []
            await service.idle.settled()
            assert len(await service.contexts.memories(chat)) == 1
    begun_later = [what for what in wire.background if isinstance(what, CompletionRequest)]
    assert begun_later == []
    assert len(wire.background) <= 1, "one more step is told at most"
    assert evaluated <= 3 * max(SIP, NEW)
