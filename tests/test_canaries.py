"""Never one conversation's text in another's answer: many of them on few slots, each with a word of its own.

The word stands in the system prompt and in every message. What the engine is asked, what is stored of an answer, a
memory or a title, and what a cache is said to save are all held against it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from rallychat import asides, idle
from rallychat.bench.scripted import scripted
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.engines.echo import decode
from rallychat.engines.protocol import CompletionRequest, Done, EngineEvent, Prefill, Tokens, WorkerSpec
from rallychat.engines.slots import shared_prefix
from rallychat.messages import Finished, Message, Started, TextDelta
from rallychat.pool import Engine, Slot
from rallychat.settings import Settings
from rallychat.store import Memory
from tests.contract.rig import Rig, gathered, rig_of

CROWD = 12
ROUNDS = 4
MORE = 6
STRATEGIES = ("full", "last_n", "summary", "ledger", "facts", "hybrid")
RECALL = "!recall 40"
"""Asked for a title or a summary, the echo engine says the beginning of the system prompt."""


def canary(number: int) -> str:
    return f"{chr(ord('a') + number) * 3}canary"


def canaries(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3}canary", text))


@dataclass(frozen=True)
class Request:
    """What an engine was asked, and what it made of it."""

    session: str
    slot: int
    asked: CompletionRequest
    before: list[int]
    """What the slot was believed to hold."""
    events: list[EngineEvent] = field(default_factory=list)

    @property
    def cached(self) -> int | None:
        return next((event.cached for event in self.events if isinstance(event, Prefill)), None)

    @property
    def whole(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Done)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer, as far as it was told."""
        return self.asked.prompt + [t for e in self.events if isinstance(e, Tokens) for t in e.ids]

    def could_leave(self, prompt: list[int]) -> int:
        """How many tokens of a later prompt this one's cache can hold at most."""
        shared = shared_prefix(self.ids, prompt)
        return len(prompt) if shared == len(self.ids) and not self.whole else shared


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Everything that engines are asked, in order."""
    seen: list[Request] = []
    generate = Engine.generate

    async def watched(
        self: Engine, request: CompletionRequest, slot: Slot, *, session: str | None = None
    ) -> AsyncGenerator[EngineEvent, None]:
        seen.append(Request(slot.session, slot.index, request, slot.ids))
        events = seen[-1].events
        async with aclosing(generate(self, request, slot, session=session)) as stream:
            async for event in stream:
                events.append(event)
                yield event

    monkeypatch.setattr(Engine, "generate", watched)
    monkeypatch.setattr(idle, "REST", 0.0)
    return seen


@pytest.fixture(autouse=True)
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cache that leaves its slot is kept, however short, and however fast it would be read anew."""
    monkeypatch.setattr("rallychat.pool.offload.LEAST", 8)
    monkeypatch.setattr("rallychat.pool.offload.NEARLY", 1)
    monkeypatch.setattr("rallychat.pool.offload.FELT", 0.0)
    monkeypatch.setattr("rallychat.pool.offload.WORTH", 1e9)


class Speaker:
    """Somebody with a conversation and a word of its own, who does what a seed says."""

    def __init__(self, service: ChatService, number: int) -> None:
        self.service = service
        self.word = canary(number)
        self.chance = random.Random(number)
        self.strategy = STRATEGIES[number % len(STRATEGIES)]
        self.id = ""

    async def arrive(self) -> None:
        store = self.service.store
        self.id = (await store.create(system=f"Speak of {self.word} and of old boats.")).id
        await self.service.contexts.set_strategy(self.id, self.strategy)
        await self.say(f"My boat is {self.word}.")

    async def act(self) -> None:
        """One of what people do."""
        chance = self.chance.random()
        path = await self.service.store.path(self.id)
        if chance < 0.15:
            await (await self.service.regenerate(path[-1].id)).wait()
        elif chance < 0.3:
            asked = self.chance.choice([row for row in path if row.role == "user"])
            await (await self.service.edit(asked.id, f"{self.word} sails again, !")).wait()
        elif chance < 0.45:
            await self.interrupted()
        elif chance < 0.55:
            await self.stateless()
        elif chance < 0.8:
            await self.say("!recall 120")
        else:
            await self.say(f"{self.word} lies in the harbour, with lemons aboard, and waits for the wind.")

    async def say(self, text: str) -> None:
        end = await (await self.service.turn(self.id, text)).wait()
        assert isinstance(end, Finished)

    async def interrupted(self) -> None:
        """Stopped while it is read, or while it answers."""
        last: type[Started | TextDelta] = self.chance.choice([Started, TextDelta])
        run = await self.service.turn(self.id, f"!repeat 30 {self.word} ")
        async with aclosing(run.attach()) as events:
            async for event in events:
                if isinstance(event, last):
                    break
        await self.service.stop(run.id)

    async def stateless(self) -> None:
        said = [Message.of("system", f"Of {self.word}."), Message.of("user", "!recall 120")]
        async with aclosing(self.service.complete(said)) as events:
            text = "".join([event.text async for event in events if isinstance(event, TextDelta)])
        assert canaries(text) == {self.word}

    async def stored(self) -> str:
        """All there is of the conversation: every branch that was ever in view, memories, title."""
        path = await self.service.store.path(self.id)
        texts = [row.text for row in path]
        for row in path:
            texts += [
                (await self.service.store.message(s)).text for s in await self.service.store.siblings(row.id)
            ]
        texts += [memory.text for memory in await self.service.contexts.memories(self.id)]
        return "\n".join([*texts, (await self.service.store.get(self.id)).title])


@pytest.mark.parametrize(("slots", "rollback"), [(2, True), (3, False)])
async def test_nobody_ever_gets_a_word_of_another_conversation(
    tmp_path: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch, slots: int, rollback: bool
) -> None:
    monkeypatch.setattr(asides, "TITLE_PROMPT", RECALL)
    options = f"batch = 32\nrollback = {str(rollback).lower()}"
    settings = served(tmp_path, options, slots=slots, window=512, summary_prompt=RECALL)
    async with ChatService.open(settings) as service:
        crowd = [Speaker(service, number) for number in range(CROWD)]
        await asyncio.gather(*(speaker.arrive() for speaker in crowd))
        await service.idle.settled()  # a title is asked for while a conversation is young
        for number in range(ROUNDS):
            if number % 2:
                await service.idle.settled()
            await asyncio.gather(*(speaker.act() for speaker in crowd))
        for _ in range(MORE):
            if {memory.edited_by for memory in await memories(service, crowd)} == {"rules", "model"}:
                break
            for speaker in crowd:  # one by one: there is idle time between two of them
                await speaker.act()
                await service.idle.settled()
        for _ in range(3):  # until what was said of the boat is older than what a ledger holds
            await asyncio.gather(*(speaker.say(f"{speaker.word} " * 40) for speaker in crowd))
        await asyncio.gather(*(speaker.say("What did I say my boat is?") for speaker in crowd))
        await service.idle.settled()
        assert_apart(requests, {speaker.id: speaker.word for speaker in crowd})
        assert_caches_are_what_they_are_said_to_be(requests, rollback=rollback)
        for speaker in crowd:
            assert canaries(await speaker.stored()) == {speaker.word}
        await assert_hard(service, crowd, requests)


def assert_apart(requests: list[Request], words: dict[str, str]) -> None:
    for request in requests:
        there = canaries(decode(request.ids).decode(errors="replace"))
        if not request.session:
            assert len(there) == 1
        elif request.asked.max_tokens or len(request.asked.prompt) > 64:
            assert there == {words[request.session]}


def assert_caches_are_what_they_are_said_to_be(requests: list[Request], *, rollback: bool) -> None:
    """No more is said to be reused than whoever had the slot before can have left, or the same conversation in any slot
    before it was put aside; nor less than is believed."""
    last: dict[int, list[Request]] = {}
    own: dict[str, list[Request]] = {}
    for request in requests:
        before, prompt = last.get(request.slot, []), request.asked.prompt
        if request.cached is not None:
            there = [*before, *own.get(request.session, [])]
            assert request.cached <= max((one.could_leave(prompt) for one in there), default=0)
            believed = shared_prefix(request.before, prompt)
            if rollback:
                assert min(believed, len(prompt) - 1) <= request.cached
        own.setdefault(request.session, []).append(request)
        # who left before anything was told may have found the cache as it was
        last[request.slot] = [request] if request.cached is not None else [*before, request]


async def memories(service: ChatService, crowd: list[Speaker]) -> list[Memory]:
    return [memory for speaker in crowd for memory in await service.contexts.memories(speaker.id)]


async def assert_hard(service: ChatService, crowd: list[Speaker], requests: list[Request]) -> None:
    """It was tried hard: everything that could mix up conversations did happen."""
    made = await memories(service, crowd)
    assert {memory.kind for memory in made} >= {"cut", "ledger"}
    assert {memory.edited_by for memory in made} == {"rules", "model"}
    assert [request for request in requests if not request.whole], "nothing was stopped or made way"
    assert [request for request in requests if not request.session], "nothing was stateless"
    assert [r for r in requests if r.before and not shared_prefix(r.before[30:], r.asked.prompt[30:])], (
        "no eviction"
    )
    assert sum(engine.offload.restored for engine in service.pool.engines()), "nothing was brought back"
    titles = [(await service.store.get(speaker.id)).title for speaker in crowd]
    assert [title for title in titles if title.startswith("Speak of ")], "nothing was named by the model"
    rows = [row for speaker in crowd for row in await service.store.path(speaker.id)]
    assert [row for row in rows if row.report and row.report.retrieved], "nothing was quoted"


def served(data_dir: Path, options: str, **given: Any) -> Settings:
    scripted(data_dir, "scripted", options, window=1024)
    return Settings(data_dir=data_dir, model="scripted", **given)


REAL = ("tulip", "hammer", "violin", "saddle", "lemon", "anchor")
WINDOW = 512


@pytest.mark.parametrize("engine", ["echo", pytest.param("llamacpp", marks=pytest.mark.real)])
async def test_an_engine_answers_as_if_each_conversation_had_it_to_itself(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    requests: list[Request],
    engine: Literal["echo", "llamacpp"],
) -> None:
    """What it says on slots that six conversations share is what it says with an empty cache, but for a word here and
    there that is as likely as another: tokens read together and one by one are not rounded alike."""
    given: dict[str, Any] = {"slots": 3, "window": WINDOW, "strategy": "ledger", "latency_factor": 0}
    if engine == "echo":
        path, settings = "", served(tmp_path, "", **given)
    else:
        path = str(request.getfixturevalue("smollm2_gguf"))
        settings = Settings(data_dir=tmp_path, model=path, **given)
    async with ChatService.open(settings) as service:
        chats = {word: (await service.store.create(system=f"The word is {word}.")).id for word in REAL}
        for question in ("Which word is it?", "Say it again."):
            await asyncio.gather(*(ask(service, chat, question) for chat in chats.values()))
        await service.idle.settled()
        assert sum(engine.offload.restored for engine in service.pool.engines())
        last = (await service.store.path(chats["tulip"]))[-1]
        await (await service.regenerate(last.id, sampling=GREEDY)).wait()
    answers = [one for one in requests if one.whole and one.asked.max_tokens]
    assert len(answers) >= 2 * len(REAL) + 1
    assert any(one.cached for one in answers)
    with rig_of(WorkerSpec(engine, "alone", path=path, slots=1, window=WINDOW, threads=1)) as alone:
        others = [one for one in answers if gathered(one.events).text != await afresh(alone, one.asked)]
    assert len(others) * 4 <= len(answers)
    for one in others:
        (own,) = [word for word in REAL if chats[word] == one.session]
        assert not [word for word in REAL if word != own and word in gathered(one.events).text]


GREEDY = Sampling(temperature=0.0, max_tokens=12)


async def ask(service: ChatService, conversation_id: str, question: str) -> None:
    end = await (await service.turn(conversation_id, question, sampling=GREEDY)).wait()
    assert isinstance(end, Finished)


async def afresh(alone: Rig, asked: CompletionRequest) -> str:
    """The answer to the same prompt where nothing of it is cached."""
    await alone.answer([asked.prompt[0] + 5], max_tokens=0)
    events = [event async for event in alone.client.generate(asked.model_copy(update={"slot": 0}))]
    answer = gathered(events)
    assert answer.done.cached_tokens == 0
    return answer.text
