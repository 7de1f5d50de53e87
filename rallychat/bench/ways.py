"""The ways to keep a long conversation's context that `bench turns` compares: four naive ones, a yardstick, and ours.

The yardstick asks each question as a conversation's second: nothing can begin sooner. These five speak to a worker of
their own, each in a slot of its own, and nothing happens in them between two turns; ours is the whole service, measured
as a user of it would.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

from rallychat import garbage, templates
from rallychat.bench.folders import apart
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.context.memory import SUMMARY_PROMPT
from rallychat.engines.protocol import CompletionRequest, Done, Tokens
from rallychat.errors import EngineInterrupted
from rallychat.messages import ContextReport, Failed, Message, ReasoningDelta, TextDelta
from rallychat.planning import tokens_of
from rallychat.pool import Engine, Pool
from rallychat.prompts import PromptTemplate
from rallychat.settings import Settings
from rallychat.sources import Downloads

ANSWER, SUMMARY = 64, 96
"""Tokens of an answer, and of a summary, at most."""
LAST, HIGH, LOW = 3, 1000, 300
"""Exchanges that `last 3` keeps; tokens at which the inline hysteresis cuts, and down to which."""
STEP = 0.5
"""Seconds in which an engine step that was begun is over."""
OURS = "ours"
TURN_2 = "always turn 2"
NAIVE = ("everything, uncached", "last 3", "last 3 and summary", "hysteresis, inline", TURN_2)
NAMES = (*NAIVE, OURS)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn cost.

    Args:
        first_ms: from sending to the first token, with all waiting.
        waited_ms: of it, for a summary, or for the engine to let go of something else.
        rate: tokens a second of the answer, once it had begun.
        prompt: tokens of the prompt.
        evaluated: tokens that were read while the user waited, a summary's among them.
        new: tokens of the user's turn as the template writes it, with what is quoted in it.
        quoted: of these, the quotes.
    """

    first_ms: float
    waited_ms: float
    rate: float
    prompt: int
    evaluated: int
    new: int
    quoted: int = 0


@dataclass(slots=True)
class Way:
    """One way to keep the context, and what it cost so far.

    `beside` and `compactions` tell the tokens evaluated besides the answers, and how often room was made.
    """

    name: str
    think: float
    say: Callable[[str], Awaitable[Turn]]
    pause: Callable[[], Awaitable[None]]
    beside: Callable[[], int] = lambda: 0
    compactions: Callable[[], Awaitable[int]] | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name, and how long a person thinks where that matters."""
        return f"{self.name}, thinking {self.think:g} s" if self.name == OURS else self.name


# --- ours -------------------------------------------------------------------------------------------------


async def ours(stack: AsyncExitStack, settings: Settings, think: Sequence[float]) -> list[Way]:
    """The service, once for each think time. The machine's speed is measured once, before anything counts."""
    return [await _ours(stack, settings, seconds) for seconds in think]


async def _ours(stack: AsyncExitStack, settings: Settings, think: float) -> Way:
    folder = settings.data_dir / f"think-{think:g}"
    folder.mkdir()
    own, measured = apart(settings, folder), settings.data_dir / "latency.json"
    if measured.exists():
        shutil.copy(measured, folder)
    service = await stack.enter_async_context(begun(own))
    engine = await service.pool.open(service.resolve(None))
    if (folder / "latency.json").exists():
        shutil.copy(folder / "latency.json", measured)
    chat = (await service.store.create()).id
    before = engine.background_tokens

    async def pause() -> None:
        service.idle.leave(chat)
        await asyncio.sleep(STEP)  # the step that was going on would share the cores with the next way

    async def compactions() -> int:
        return len(await service.contexts.memories(chat))

    return Way(
        OURS,
        think,
        lambda text: _said(service, chat, text),
        pause,
        beside=lambda: engine.background_tokens - before,
        compactions=compactions,
    )


async def _said(service: ChatService, chat: str, text: str) -> Turn:
    began = time.monotonic()
    run = await service.turn(chat, text, sampling=Sampling(temperature=0.0, max_tokens=ANSWER))
    first = last = 0.0
    async with aclosing(run.attach()) as events:
        async for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                last = time.monotonic() - began
                first = first or last
            elif isinstance(event, Failed):
                raise EngineInterrupted(event.message, hint=event.hint)
    await run.wait()  # what begins after an answer has begun: now it can be paused
    row = (await service.store.path(chat))[-1]
    assert row.usage is not None
    assert row.timings is not None
    assert row.report is not None
    new, quoted = _of_question(row.report)
    return Turn(
        first_ms=(first or time.monotonic() - began) * 1000,
        waited_ms=row.timings.queued_ms,
        rate=_rate(row.usage.completion_tokens, last - first),
        prompt=row.usage.prompt_tokens,
        evaluated=row.usage.prompt_tokens - row.usage.cached_tokens,
        new=new,
        quoted=quoted,
    )


def _of_question(report: ContextReport) -> tuple[int, int]:
    """Tokens of a prompt's last message, and of the quotes that stand in it."""
    quoted = sum(part.tokens for part in report.segments if part.kind == "retrieved")
    return quoted + next(part.tokens for part in reversed(report.segments) if part.kind == "user"), quoted


def _rate(tokens: int, seconds: float) -> float:
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0


@asynccontextmanager
async def begun(settings: Settings) -> AsyncIterator[ChatService]:
    """A service after the first answer anybody gets, and the idle time after it: its budget is that of this machine."""
    async with ChatService.open(settings) as service:
        await service.pool.open(service.resolve(None))
        other = (await service.store.create()).id
        await (await service.turn(other, "Hello!", sampling=Sampling(max_tokens=4))).wait()
        await service.idle.settled()
        with garbage.settled():
            yield service


# --- the naive ways ---------------------------------------------------------------------------------------

_Make = Callable[[list[Message]], Awaitable[list[Message]]]


@dataclass(slots=True)
class _Naive:
    """A conversation whose prompt is made anew each turn, in a slot of its own."""

    engine: Engine
    template: PromptTemplate
    slot: int
    rows: list[Message] = field(default_factory=list)
    written: int = 0
    """Tokens evaluated for summaries."""
    made_room: int = 0

    async def chunks(self, rows: Sequence[Message]) -> list[list[int]]:
        return await tokens_of(self.template.render(list(rows)), self.engine.client)

    async def length(self, rows: Sequence[Message]) -> int:
        return sum(map(len, await self.chunks(rows)))

    async def ask(self, rows: Sequence[Message], limit: int) -> tuple[str, Turn]:
        """The answer, and what it cost."""
        began, first, last, text = time.monotonic(), 0.0, 0.0, ""
        parts = await self.chunks(rows)
        ids = [token for part in parts for token in part]
        request = CompletionRequest(prompt=ids, max_tokens=limit, temperature=0, slot=self.slot)
        tokens, evaluated = 0, 0
        async with aclosing(self.engine.client.generate(request)) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    last = time.monotonic() - began
                    first = first or last
                    text += event.text
                elif isinstance(event, Done):
                    tokens, evaluated = event.completion_tokens, event.prompt_tokens - event.cached_tokens
        first = first or time.monotonic() - began
        rate = _rate(tokens, last - first)
        return text, Turn(first * 1000, 0.0, rate, len(ids), evaluated, new=len(parts[-1]))

    async def turn(self, text: str, make: _Make) -> Turn:
        began = time.monotonic()
        self.rows.append(Message.of("user", text))
        before = self.written
        rows = await make(self.rows)
        waited = (time.monotonic() - began) * 1000
        answer, cost = await self.ask(rows, ANSWER)
        self.rows.append(Message.of("assistant", answer or "…"))
        inline = self.written - before
        return Turn(
            first_ms=waited + cost.first_ms,
            waited_ms=waited if inline else 0.0,
            rate=cost.rate,
            prompt=cost.prompt,
            evaluated=cost.evaluated + inline,
            new=cost.new,
        )


async def naive(stack: AsyncExitStack, settings: Settings, names: Sequence[str]) -> list[Way]:
    """Those of `NAIVE` that are named, on a worker apart."""
    if not any(name in NAIVE for name in names):
        return []
    settings = settings.model_copy(update={"slots": max(settings.slots, len(NAIVE))})
    pool = Pool(settings, Downloads(settings))
    stack.push_async_callback(pool.aclose)
    async with ChatService.open(settings) as service:
        model = service.resolve(None)
        family = service.catalog.family(model)
    engine = await pool.open(model)
    template = templates.choose(model, family, engine.info)
    room = engine.info.window - ANSWER - 16
    makers = (_everything, _last, _summary, _hysteresis, _turn_2)

    def way(name: str, slot: int, maker: Callable[[_Naive, int], _Make]) -> Way:
        talk = _Naive(engine, template, slot)
        make = maker(talk, room)

        async def compactions() -> int:
            return talk.made_room

        counted = None if maker in (_last, _turn_2) else compactions
        return Way(name, 0.0, lambda text: talk.turn(text, make), _nothing, compactions=counted)

    found = [way(name, slot, maker) for slot, (name, maker) in enumerate(zip(NAIVE, makers, strict=True))]
    return [one for one in found if one.name in names]


async def _nothing() -> None:
    """There is nothing to pause."""


def _everything(talk: _Naive, room: int) -> _Make:
    start = 0

    async def make(rows: list[Message]) -> list[Message]:
        nonlocal start
        # A first line that is another each turn: nothing of the cache can be used.
        head = Message.of("system", f"{len(rows)} messages so far.")
        while len(rows) - start > 2 and await talk.length([head, *rows[start:]]) > room:
            start += 2
        return [head, *rows[start:]]

    return make


def _last(talk: _Naive, room: int) -> _Make:
    async def make(rows: list[Message]) -> list[Message]:
        return rows[-2 * LAST - 1 :]

    return make


def _turn_2(talk: _Naive, room: int) -> _Make:
    async def make(rows: list[Message]) -> list[Message]:
        return [*rows[:2], rows[-1]] if len(rows) > 1 else rows

    return make


def _summary(talk: _Naive, room: int) -> _Make:
    """As chatbots of 2023 did it: before each answer, a summary of all but the newest, in front of those."""
    known = ""

    async def make(rows: list[Message]) -> list[Message]:
        nonlocal known
        newest, older = rows[-2 * LAST - 1 :], rows[: -2 * LAST - 1]
        if not older:
            return newest
        lines = [f"{row.role}: {row.text}" for row in older[-2:]]
        known, cost = await talk.ask(
            [Message.of("user", "\n".join([SUMMARY_PROMPT, known, *lines]))], SUMMARY
        )
        talk.written += cost.evaluated
        talk.made_room += 1
        return [Message.of("system", f"The conversation so far: {known}"), *newest]

    return make


def _hysteresis(talk: _Naive, room: int) -> _Make:
    """The prompt only grows, and the oldest leave at once where it is too long: while the user waits."""
    start = 0

    async def make(rows: list[Message]) -> list[Message]:
        nonlocal start
        if await talk.length(rows[start:]) > min(HIGH, room):
            talk.made_room += 1
            while len(rows) - start > 2 and await talk.length(rows[start:]) > LOW:
                start += 2
        return rows[start:]

    return make
