"""`rallychat bench chaos`: people chat while everything that can fail fails; counts what is lost, doubled or missing.

Real server processes, real clients (every third OpenAI's own, where it is installed; of the scripted model every
third on the page), faults at random from a seed. Afterwards the server is started once more and asked for all that was
said.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rallychat.bench.client import PATIENCE, Line, Official, Plain, Sent, Talker, has_openai
from rallychat.bench.faults import Database, Faults
from rallychat.bench.folders import alone, apart
from rallychat.bench.on_page import OnPage, answer_to, conversations, items_of, places_of, text_of
from rallychat.bench.scripted import scripted
from rallychat.bench.server import ServerProcess, running
from rallychat.bench.turns import wish_to_stop
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings

SETTLE = 60.0
"""Seconds that answers may take to end when nothing fails any more."""
CALM = (0.5, 4.0)
"""Seconds between two faults."""
FEWEST = 3
"""Faults that there are however short the time: fewer tell nothing."""
TURNS = 6
"""Messages of a conversation."""
ECHO = "chaos"
"""The scripted model's name."""
PACE = "delay_ms = 10"
"""Its options."""
SCRIPTED = "!repeat 40 {name}"
REAL = "{name} Tell a story, a long one, with many people in it."
REAL_TOKENS = 48


@dataclass
class World:
    """Who chats, and what they said."""

    people: list[Talker]
    question: str
    sent: list[Sent] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    on_page: set[int] = field(default_factory=set)
    """The numbers of those who chat on the page."""
    over: bool = False


async def run_chaos(
    settings: Settings,
    *,
    minutes: float,
    people: int,
    seed: int,
    postgres: bool,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row: what was sent, and what became of it. Ctrl-C ends the faults early; the count follows all the same.

    Raises:
        EngineUnavailable: the server could not be started again, or took nothing that anybody said.
    """
    rng = random.Random(seed)  # noqa: S311 - faults that can be had again
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        own = world_of(settings, folder)
        database = None
        if postgres:
            database = Database()
            stack.callback(database.close)
            await asyncio.to_thread(database.begin)
        server = ServerProcess(
            own,
            own.model,
            page=own.model == ECHO,
            arguments=["--slots", str(min(people, 8)), "--shutdown-grace", "2"],
            environment={"RALLYCHAT_DATABASE_URL": database.url} if database else {},
        )
        await stack.enter_async_context(running(server))
        world = await _people(server, people, rng, stack)
        began = time.monotonic()
        chatting = [asyncio.create_task(_chat(world, number)) for number in range(people)]
        stack.push_async_callback(called_off, chatting)
        await _fail(world, Faults(server, world.people, database, rng), rng, minutes * 60, tell)
        world.over = True
        _, stuck = await asyncio.wait(chatting, timeout=SETTLE)
        seconds = time.monotonic() - began
        await called_off(chatting)
        if not world.sent:
            said = "; ".join(world.refusals) or server.last_words
            raise EngineUnavailable(f"Nobody could say anything, so nothing could be lost: {said}")
        tell("counting")
        await server.stop()
        await server.start()
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
            row = await _count(http, world, stuck=len(stuck), tell=tell)
    for said, count in world.refusals.items():
        tell(f"refused {count}: {said}")
    head = {"seed": seed, "minutes": round(seconds / 60, 1), "faults": world.faults.total()}
    return [{**head, **row, "died": server.died, "unclean_ends": server.unclean}]


def world_of(settings: Settings, folder: Path) -> Settings:
    """Settings for a server with a folder of its own: over the scripted model, or those that are here."""
    if settings.model != ECHO:
        return apart(settings, folder)
    scripted(folder, ECHO, PACE)
    return alone(settings, folder)


async def _people(server: ServerProcess, people: int, rng: random.Random, stack: AsyncExitStack) -> World:
    limit = None if server.model == ECHO else REAL_TOKENS
    world = World([], question=SCRIPTED if server.model == ECHO else REAL)
    for number in range(people):
        http = httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, trust_env=False)
        await stack.enter_async_context(http)
        mine = random.Random(rng.random())  # noqa: S311
        line: Line = Plain(http, server.model, max_tokens=limit)
        if number % 3 == 1 and has_openai():
            line = official = Official(server.url, server.model, max_tokens=limit)
            stack.push_async_callback(official.aclose)
        elif number % 3 == 2 and limit is None:
            line = OnPage(http, mine)
            world.on_page.add(number)
        world.people.append(Talker(line, http, world.refusals, mine))
    return world


async def _chat(world: World, number: int) -> None:
    """One person, until it is over: a few messages in one conversation, then the next."""
    me, turn, conversation = world.people[number], 0, ""
    while not world.over:
        if turn % TURNS == 0:
            key = f"conversation-{number}-{turn}"
            conversation = "" if number in world.on_page else await me.conversation(key)
        said = world.question.format(name=f"n{number}t{turn}.")
        sent = Sent(said, f"key-{number}-{turn}", conversation)
        world.sent.append(sent)
        await me.say(sent)
        conversation = sent.conversation
        turn += 1


async def _fail(
    world: World, faults: Faults, rng: random.Random, seconds: float, tell: Callable[[str], None]
) -> None:
    """One fault after the other, each kind as often as the others."""
    began, bag = time.monotonic(), list[str]()
    with wish_to_stop() as stop:
        while True:
            calm, enough = rng.uniform(*CALM), world.faults.total() >= FEWEST
            if enough:
                calm = max(0.0, min(calm, began + seconds - time.monotonic()))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), calm)
            if stop.is_set() or (enough and time.monotonic() >= began + seconds):
                return
            if not bag:
                bag = sorted(faults.all)
                rng.shuffle(bag)
            name = bag.pop()
            ended = sum(bool(sent.ended) for sent in world.sent)
            tell(f"{time.monotonic() - began:6.1f} s  {len(world.sent)} sent, {ended} ended; now: {name}")
            await faults.server.revive()
            world.faults[name] += await faults.all[name]()


async def called_off(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Ends them; what one has failed with is raised."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def _count(
    http: httpx.AsyncClient, world: World, *, stuck: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """What the server still knows, against what people saw."""
    stored: dict[str, list[dict[str, Any]]] = {}
    for conversation in {*await conversations(http), *(sent.conversation for sent in world.sent)} - {""}:
        stored[conversation] = await items_of(http, conversation)
    lost = unread = wrong = 0
    doubled = _strays(world, stored, tell)
    for sent in world.sent:
        items = stored.get(sent.conversation, [])
        found = places_of(sent, items)
        if len(found) != bool(sent.response):
            there = [f"{item['role']} {item['id']} {text_of(item)[:40]!r}" for item in items]
            tell(f"{len(found)} times in the conversation: {sent}; which has {there}")
        lost += bool(sent.response) and not found
        doubled += max(0, len(found) - 1)
        if not sent.response:
            continue
        said = await _answer(http, sent, items)
        unread += 0 if said.startswith(sent.seen) else len(sent.seen) - _shared(said, sent.seen)
        if sent.ended == "response.completed" and world.question == SCRIPTED:
            wrong += said != expected(sent.text)
    ends = Counter(sent.ended or "nothing" for sent in world.sent)
    return {
        "sent": len(world.sent),
        "stored": sum(bool(sent.response) for sent in world.sent) - lost,
        "lost": lost,
        "duplicated": doubled,
        "resumed": sum(sent.resumed for sent in world.sent),
        "gaps": sum(sent.gaps for sent in world.sent),
        "repeats": sum(sent.repeats for sent in world.sent),
        "characters_seen": sum(len(sent.seen) for sent in world.sent),
        "characters_lost": unread,
        "wrong_answers": wrong if world.question == SCRIPTED else None,
        "complete": ends["response.completed"],
        "at_their_limit": ends["response.incomplete"],
        "interrupted": ends["response.failed"],
        "stuck": stuck,
        "refused": sum(count for status, count in world.refusals.items() if status.isdecimal()),
        "unexpected": sum(count for status, count in world.refusals.items() if not status.isdecimal()),
    }


def _strays(world: World, stored: Mapping[str, list[dict[str, Any]]], tell: Callable[[str], None]) -> int:
    """Messages that somebody was told of, in conversations that nobody was told of."""
    known = {sent.conversation for sent in world.sent}
    told = {sent.text for sent in world.sent if sent.response}
    found = [(name, item) for name, items in stored.items() if name not in known for item in items]
    strays = [f"{name}: {text_of(item)}" for name, item in found if text_of(item) in told]
    if strays:
        tell(f"said once more, in conversations of their own: {strays}")
    return len(strays)


async def _answer(http: httpx.AsyncClient, sent: Sent, items: list[dict[str, Any]]) -> str:
    if sent.response == sent.conversation:
        return text_of(answer_to(sent, items))
    answer = await http.get(f"/v1/responses/{sent.response}")
    return "".join(map(text_of, answer.json()["output"])) if answer.is_success else ""


def expected(said: str) -> str:
    """What the scripted engine answers."""
    _, count, text = said.split(" ", 2)
    return text * int(count)


def _shared(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
