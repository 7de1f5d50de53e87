"""`rallychat bench turns`: does turn 200 begin as fast as turn 2? Five ways to keep a context, the same questions,
and a yardstick: the same question as a conversation's second.

The ways take turns, so that a noisy machine is noisy for all; while one talks the others do nothing, ours in the
background neither. The clock starts when the user sends; a summary that has to be waited for counts. Nothing happens
in the naive ways while a user thinks, so there is no thinking in them; in ours the time really passes.

Each turn is written down as soon as it is done, and a run that is ended early says what it has.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rallychat.bench import plot
from rallychat.bench.folders import apart
from rallychat.bench.lengths import lengths
from rallychat.bench.talk import alike, distinct, some
from rallychat.bench.ways import NAMES, OURS, TURN_2, Way, naive, ours
from rallychat.errors import InvalidRequest
from rallychat.settings import Settings
from rallychat.signals import on_signals

EARLY = slice(1, 10)
"""Turns 2 to 10: what later ones are compared with."""
LATE = 10
"""Turns before the first late one."""
WAITED = (
    "first_ms", "median_ms", "p95_ms", "flatness", "to_turn_2", "to_turn_2_p95", "worst_ms", "stall_ms", "waited_s"
)  # fmt: skip
WORKED = (
    "prompt", "prompt_p95", "critical", "in_all", "quoted", "compactions", "tokens_s", "slow_tokens_s"
)  # fmt: skip
"""The columns of the two tables."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One row per way and think time, and the turns that all of them made."""

    rows: list[dict[str, Any]]
    turns: int


async def run_turns(
    settings: Settings,
    *,
    turns: int = 200,
    think: Sequence[float] = (0.0, 2.0),
    texts: Path | None = None,
    question_tokens: range | None = None,
    ways: Sequence[str] = (),
    minutes: float | None = None,
    image: Path | None = None,
    out: Path | None = None,
    tell: Tell = lambda _: None,
) -> Measured:
    """All ways for so many turns, or as many as there was time for; a first SIGINT or SIGTERM ends it early.

    Columns: `first_ms` (median of turns 2-10), `median_ms` and `p95_ms` (turns 11 to the last), `flatness` (p95 over
    `first_ms`), `to_turn_2` and `to_turn_2_p95` (from turn 11 on, the time over that of the same question as a second
    turn, asked in the same minute), `worst_ms`, `stall_ms` (the longest wait for a summary or for the engine),
    `waited_s` (all of that), `prompt` and `prompt_p95` (tokens of the prompts from turn 11 on, median and 95th
    percentile), `critical` (tokens evaluated while the user waited, over those of the user's turns) and `in_all` (the
    same with what was done beside), `quoted` (tokens of older turns quoted a turn), `compactions`, `tokens_s` and
    `slow_tokens_s` (of answers: median, and the slowest twentieth).

    Args:
        question_tokens: only messages of so many tokens are said; None: of any.
        ways: of `NAMES`; empty: all.
        out: a line of JSON for each turn of each way is added here.
        tell: hears how far it is.

    Raises:
        InvalidRequest: there is no such way, or not enough to say.
    """
    if unknown := [name for name in ways if name not in NAMES]:
        raise InvalidRequest(f"There is no way '{unknown[0]}'.", param="way", hint=f"there are {NAMES}")
    said = await _said(settings, texts, turns, question_tokens)
    names = ways or NAMES
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        own = apart(settings, folder)
        found = await naive(stack, own, names)
        found += await ours(stack, own, think if OURS in names else ())
        until = time.monotonic() + minutes * 60 if minutes else None
        with wish_to_stop() as stop:
            await _talk(found, said, stop=stop, until=until, out=out, tell=tell)
        done = min(len(way.turns) for way in found)
        for way in found:
            del way.turns[done:]
        second = next((way for way in found if way.name == TURN_2), None)
        rows = [await _row(way, second) for way in found] if done else []
    if image is not None and done:
        series = {way.label: [turn.first_ms for turn in way.turns] for way in found}
        title = f"Time to first token, {settings.model}, {done} turns{asked_in(question_tokens)}"
        plot.lines(image, series, title=title, across="turn", up="milliseconds")
    return Measured(rows, done)


def asked_in(tokens: range | None) -> str:
    """For a title: how long the questions were."""
    return f" of {tokens[0]} to {tokens[-1]} tokens" if tokens else ""


async def _said(settings: Settings, texts: Path | None, turns: int, tokens: range | None) -> list[str]:
    if tokens is None:
        return some(texts, turns)
    counted = await lengths(settings, distinct(texts))
    if counted is None:
        raise InvalidRequest(
            "The model's weights are not here, and its tokenizer counts the questions.",
            hint=f"./rally models download {settings.model}",
        )
    return alike(texts, turns, counted, tokens)


async def _talk(
    ways: Sequence[Way],
    said: Sequence[str],
    *,
    stop: asyncio.Event,
    until: float | None,
    out: Path | None,
    tell: Tell,
) -> None:
    for number, text in enumerate(said, 1):
        for way in ways:
            turn = await way.say(text)
            way.turns.append(turn)
            if way.think:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), way.think)
            await way.pause()
            if out is not None:
                _append(out, {"way": way.name, "think_s": way.think, "turn": number, **asdict(turn)})
            if stop.is_set():
                tell(f"stopped in turn {number}")
                return
        firsts = " · ".join(f"{way.label} {way.turns[-1].first_ms:.0f}" for way in ways)
        tell(f"turn {number} of {len(said)}, first token after ms: {firsts}")
        if until is not None and time.monotonic() > until:
            tell(f"time is up after turn {number}")
            return


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def wish_to_stop() -> Iterator[asyncio.Event]:
    """Set by the first SIGINT or SIGTERM; the second ends the command at once."""
    stop, mine = asyncio.Event(), asyncio.current_task()

    def asked() -> None:
        if stop.is_set() and mine is not None:
            mine.cancel()
        stop.set()

    with on_signals(asked, signal.SIGINT, signal.SIGTERM):
        yield stop


def share(values: Sequence[float], part: float) -> float:
    """The least of them that at least `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part - 1e-9) - 1)]  # 100 * 0.07 is more than 7


async def _row(way: Way, second: Way | None) -> dict[str, Any]:
    first = [turn.first_ms for turn in way.turns]
    early = statistics.median(first[EARLY] or first)
    late = first[LATE:] or first
    waited = [turn.waited_ms for turn in way.turns]
    prompts = [turn.prompt for turn in way.turns[LATE:] or way.turns]
    new = sum(turn.new for turn in way.turns)
    evaluated = sum(turn.evaluated for turn in way.turns)
    rates = [turn.rate for turn in way.turns if turn.rate]
    over = [
        turn.first_ms / least.first_ms
        for turn, least in zip(way.turns, second.turns if second else (), strict=bool(second))
    ][LATE:]
    return {
        "way": way.name,
        "think_s": way.think if way.name == OURS else None,
        "turns": len(way.turns),
        "first_ms": round(early),
        "median_ms": round(statistics.median(late)),
        "p95_ms": round(share(late, 0.95)),
        "flatness": round(share(late, 0.95) / early, 2),
        "to_turn_2": round(statistics.median(over), 2) if over else None,
        "to_turn_2_p95": round(share(over, 0.95), 2) if over else None,
        "worst_ms": round(max(first)),
        "stall_ms": round(max(waited)),
        "waited_s": round(sum(waited) / 1000, 1),
        "prompt": round(statistics.median(prompts)),
        "prompt_p95": share(prompts, 0.95),
        "critical": round(evaluated / new, 2),
        "in_all": round((evaluated + way.beside()) / new, 2),
        "quoted": round(sum(turn.quoted for turn in way.turns) / len(way.turns), 1),
        "compactions": await way.compactions() if way.compactions else None,
        "tokens_s": round(statistics.median(rates), 1) if rates else None,
        "slow_tokens_s": round(share(rates, 0.05), 1) if rates else None,
    }
