"""`rallychat bench turns`: does turn 200 begin as fast as turn 2? Five ways to keep a context, the same questions.

The ways take turns in blocks, so that a noisy machine is noisy for all; while one talks the others do nothing, ours
in the background neither. The clock starts when the user sends; a summary that has to be waited for counts.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rallychat import templates
from rallychat.bench import plot
from rallychat.bench.talk import some
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.context.memory import SUMMARY_PROMPT
from rallychat.engines.protocol import CompletionRequest, Done, Tokens
from rallychat.errors import EngineInterrupted
from rallychat.messages import Failed, Message, Piece, TextDelta
from rallychat.planning import tokens_of
from rallychat.pool import Engine, Pool
from rallychat.prompts import PromptTemplate
from rallychat.settings import Settings
from rallychat.sources import Downloads

ANSWER, SUMMARY = 64, 96
"""Tokens of an answer, and of a summary, at most."""
BLOCK = 5
"""Turns one way makes before the next one's turn."""
LAST, HIGH, LOW = 3, 1000, 300
"""Exchanges that `last 3` keeps; tokens at which the inline hysteresis cuts, and down to which."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn cost. Milliseconds from sending; tokens evaluated while the user waited, and of what is new."""

    first_ms: float
    waited_ms: float
    evaluated: int
    new: int


@dataclass(slots=True)
class Way:
    """One way to keep the context, and what it cost so far."""

    name: str
    think: float
    say: Callable[[str], Awaitable[Turn]]
    pause: Callable[[], Awaitable[None]]
    turns: list[Turn] = field(default_factory=list)
    extra: Callable[[], int] = lambda: 0
    """Tokens evaluated beside the answers."""


async def run_turns(
    settings: Settings,
    *,
    turns: int = 200,
    think: Sequence[float] = (0.0, 2.0),
    texts: Path | None = None,
    ways: Sequence[str] = (),
    image: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per way and think time; the naive ways do nothing while a user thinks, so they have one row.

    Columns: `first_ms` (median of turns 2-10), `p95_ms` (turns 11 to the last), `flatness` (their ratio), `worst_ms`,
    `waited_ms` (longest wait for background work or a summary), `amplification` (tokens evaluated while the user
    waits over new user tokens), `in_all` (the same with what was done beside).
    """
    said = some(texts, turns)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        (folder / "models").symlink_to(settings.models_dir.resolve())
        own = settings.model_copy(update={"data_dir": folder, "titles": False})
        found: list[Way] = []
        naive = await _naive(stack, own)
        found += [way for way in naive if not ways or way.name in ways]
        for seconds in think if not ways or "ours" in ways else ():
            found.append(await _ours(stack, own, seconds))
        for start in range(0, turns, BLOCK):
            for way in found:
                for text in said[start : start + BLOCK]:
                    way.turns.append(await way.say(text))
                    await asyncio.sleep(way.think)
                await way.pause()
    if image is not None:
        series = {_label(way): [turn.first_ms for turn in way.turns] for way in found}
        plot.lines(
            image, series, title=f"Time to first token, {settings.model}", across="turn", up="milliseconds"
        )
    return [_row(way) for way in found]


def _label(way: Way) -> str:
    return f"{way.name}, thinking {way.think:g} s" if way.name == "ours" else way.name


def _row(way: Way) -> dict[str, Any]:
    first = [turn.first_ms for turn in way.turns]
    early = statistics.median(first[1:10] or first)
    late = sorted(first[10:] or first)
    p95 = late[min(len(late) - 1, int(len(late) * 0.95))]
    new = sum(turn.new for turn in way.turns)
    evaluated = sum(turn.evaluated for turn in way.turns)
    return {
        "way": way.name,
        "think_s": way.think if way.name == "ours" else None,
        "turns": len(way.turns),
        "first_ms": round(early),
        "p95_ms": round(p95),
        "flatness": round(p95 / early, 2),
        "worst_ms": round(max(first)),
        "waited_ms": round(max(turn.waited_ms for turn in way.turns)),
        "amplification": round(evaluated / new, 2),
        "in_all": round((evaluated + way.extra()) / new, 2),
    }


# --- ours -------------------------------------------------------------------------------------------------


async def _ours(stack: AsyncExitStack, settings: Settings, think: float) -> Way:
    """The real service, with a data folder of its own, measured as a user of it would."""
    folder = settings.data_dir / f"think-{think:g}"
    folder.mkdir()
    (folder / "models").symlink_to(settings.models_dir.resolve())
    service = await stack.enter_async_context(
        ChatService.open(settings.model_copy(update={"data_dir": folder}))
    )
    engine = await service.pool.open(service.resolve(None))
    await _measured(service)
    chat = (await service.store.create()).id
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER)

    async def say(text: str) -> Turn:
        began = time.monotonic()
        run = await service.turn(chat, text, sampling=sampling)
        first = 0.0
        async with aclosing(run.attach()) as events:
            async for event in events:
                if isinstance(event, TextDelta) and not first:
                    first = time.monotonic() - began
                elif isinstance(event, Failed):
                    raise EngineInterrupted(event.message, hint=event.hint)
        row = (await service.store.path(chat))[-1]
        assert row.usage is not None
        assert row.timings is not None
        new = await _count(engine, text)
        evaluated = row.usage.prompt_tokens - row.usage.cached_tokens
        return Turn((first or time.monotonic() - began) * 1000, row.timings.queued_ms, evaluated, new)

    async def pause() -> None:
        service.idle.leave(chat)

    before = engine.background_tokens
    return Way("ours", think, say, pause, extra=lambda: engine.background_tokens - before)


async def _measured(service: ChatService) -> None:
    """The budget by this machine's speed, as it is after the first answer anybody gets."""
    other = (await service.store.create()).id
    await (await service.turn(other, "Hello!", sampling=Sampling(max_tokens=4))).wait()
    await service.idle.settled()


# --- the naive ways ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Naive:
    """A conversation whose prompt is made anew each turn, in a slot of its own."""

    engine: Engine
    template: PromptTemplate
    slot: int
    rows: list[Message] = field(default_factory=list)
    written: int = 0

    async def ids(self, rows: Sequence[Message]) -> list[int]:
        rendered = self.template.render(list(rows))
        return [token for chunk in await tokens_of(rendered, self.engine.client) for token in chunk]

    async def ask(self, rows: Sequence[Message], limit: int) -> tuple[str, float, int]:
        """The answer, seconds to its first token, and tokens evaluated for it."""
        began, first, text, evaluated = time.monotonic(), 0.0, "", 0
        ids = await self.ids(rows)
        request = CompletionRequest(prompt=ids, max_tokens=limit, temperature=0, slot=self.slot)
        async with aclosing(self.engine.client.generate(request)) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    first = first or time.monotonic() - began
                    text += event.text
                elif isinstance(event, Done):
                    evaluated = event.prompt_tokens - event.cached_tokens
        return text, first or time.monotonic() - began, evaluated

    async def fitting(self, rows: list[Message], room: int) -> list[Message]:
        """The newest of them that fit, from a user's message on."""
        while len(rows) > 2 and len(await self.ids(rows)) > room:
            rows = rows[2:]
        return rows

    async def turn(self, text: str, make: Callable[[list[Message]], Awaitable[list[Message]]]) -> Turn:
        began = time.monotonic()
        self.rows.append(Message.of("user", text))
        before = self.written
        rows = await make(self.rows)
        waited = time.monotonic() - began
        answer, first, evaluated = await self.ask(rows, ANSWER)
        self.rows.append(Message.of("assistant", answer or "…"))
        inline = self.written - before
        new = await _count(self.engine, text)
        return Turn((waited + first) * 1000, waited * 1000 if inline else 0.0, evaluated + inline, new)


async def _naive(stack: AsyncExitStack, settings: Settings) -> list[Way]:
    """Everything uncached, last 3 sliding, last 3 with a summary in front, hysteresis inline; on a worker apart."""
    pool = Pool(settings, Downloads(settings))
    stack.push_async_callback(pool.aclose)
    async with ChatService.open(settings) as service:
        model = service.resolve(None)
        family = service.catalog.family(model)
    engine = await pool.open(model)
    template = templates.of_engine(model, family, engine.info)
    room = engine.info.window - ANSWER - 16

    def way(name: str, number: int, make: Callable[[_Naive], _Make]) -> Way:
        talk = _Naive(engine, template, number)
        made = make(talk)
        return Way(name, 0.0, lambda text: talk.turn(text, made), _nothing)

    return [
        way("everything, uncached", 0, lambda talk: _everything(talk, room)),
        way("last 3", 1, lambda talk: _last(talk, room)),
        way("last 3 and summary", 2, lambda talk: _summary(talk, room)),
        way("hysteresis, inline", 3, _hysteresis),
    ]


_Make = Callable[[list[Message]], Awaitable[list[Message]]]


async def _nothing() -> None:
    """There is nothing to pause."""


def _everything(talk: _Naive, room: int) -> _Make:
    async def make(rows: list[Message]) -> list[Message]:
        # A first line that is another each turn: nothing of the cache can be used.
        return [Message.of("system", f"{len(rows)} messages so far."), *await talk.fitting(rows, room - 32)]

    return make


def _last(talk: _Naive, room: int) -> _Make:
    async def make(rows: list[Message]) -> list[Message]:
        return await talk.fitting(rows[-2 * LAST - 1 :], room)

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
        asked = "\n".join([SUMMARY_PROMPT, known, *lines])
        known, _, evaluated = await talk.ask([Message.of("user", asked)], SUMMARY)
        talk.written += evaluated
        return [
            Message.of("system", f"The conversation so far: {known}"),
            *await talk.fitting(newest, room - 128),
        ]

    return make


def _hysteresis(talk: _Naive) -> _Make:
    start = 0

    async def make(rows: list[Message]) -> list[Message]:
        nonlocal start
        if len(await talk.ids(rows[start:])) > HIGH:
            while len(rows) - start > 2 and len(await talk.ids(rows[start:])) > LOW:
                start += 2
        return rows[start:]

    return make


async def _count(engine: Engine, text: str) -> int:
    (ids,) = await engine.client.tokenize([Piece(text, special=False)])
    return len(ids)
