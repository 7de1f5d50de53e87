"""`rallychat bench`: runs a measurement and prints its rows as a table or as JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rallychat.errors import InvalidRequest
from rallychat.settings import Settings

WIDE = 160
"""Columns of a table that goes into a file."""


async def bench_serve(settings: Settings, *, users: str, max_tokens: int, rounds: int, as_json: bool) -> None:
    """Throughput and time to first token, against the raw engine in the same run."""
    from rallychat.bench.serve import run_serve

    counts = numbers(users, name="users")
    rows = await run_serve(settings, users=counts, rounds=rounds, max_tokens=max_tokens)
    show(rows, as_json=as_json, title=f"{settings.model}, {max_tokens} tokens an answer, {rounds} rounds")


async def bench_batch(settings: Settings, *, lines: int, max_tokens: int, rounds: int, as_json: bool) -> None:
    """Throughput of a batch, against the raw engine with all slots busy."""
    from rallychat.bench.batch import run_batch

    rows = await run_batch(settings, lines=lines, rounds=rounds, max_tokens=max_tokens)
    show(rows, as_json=as_json, title=f"{settings.model}, {max_tokens} tokens an answer, {rounds} rounds")


async def bench_beside(
    settings: Settings,
    *,
    people: int,
    minutes: float,
    think: float,
    max_tokens: int,
    rounds: int,
    as_json: bool,
) -> None:
    """What people who chat notice of a batch."""
    from rallychat.bench.beside import run_beside

    rows = await run_beside(
        settings,
        people=people,
        rounds=rounds,
        minutes=minutes,
        max_tokens=max_tokens,
        think=think,
        tell=progress,
    )
    title = f"{settings.model}, {people} people who think for {think:g} s, {rounds} rounds"
    show(rows, as_json=as_json, title=title)


async def bench_page(settings: Settings, *, messages: str, rounds: int, as_json: bool) -> None:
    """What one streamed update of the page costs the server, in a short and in a long chat."""
    from rallychat.bench.page import run_page

    counts = numbers(messages, name="messages")
    rows = await run_page(settings, messages=counts, rounds=rounds)
    show(rows, as_json=as_json, title=f"One update of a growing answer, {rounds} rounds")


async def bench_titles(settings: Settings, *, as_json: bool) -> None:
    """What a model calls twenty conversations, beside what the rule calls them."""
    from rallychat.bench.titles import run_titles

    rows = await run_titles(settings)
    taken = sum(bool(row["taken"]) for row in rows)
    show(rows, as_json=as_json, title=f"{settings.model}: {taken} of {len(rows)} would be taken")


async def bench_crash(settings: Settings, *, streams: int, as_json: bool) -> None:
    """What is lost when the engine, and when the server, is killed amid many answers."""
    from rallychat.bench.crash import run_crash

    show(
        await run_crash(settings, streams=streams),
        as_json=as_json,
        title=f"{settings.model}, killed amid answers",
    )


async def bench_chaos(
    settings: Settings, *, minutes: float, people: int, seed: int | None, postgres: bool, as_json: bool
) -> None:
    """What is lost while everything that can fail fails."""
    from rallychat.bench.chaos import run_chaos

    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    progress(f"seed {seed}")
    rows = await run_chaos(
        settings, minutes=minutes, people=people, seed=seed, postgres=postgres, tell=progress
    )
    if as_json:
        show(rows, as_json=True, title="")
        return
    told = [{"what": name.replace("_", " "), "count": value} for row in rows for name, value in row.items()]
    show(told, as_json=False, title=f"{settings.model}, {people} people, seed {seed}")


async def bench_soak(
    settings: Settings, *, minutes: float, users: int, image: Path | None, as_json: bool
) -> None:
    """What grows while many people chat for long."""
    from rallychat.bench.soak import run_soak

    rows = await run_soak(settings, minutes=minutes, users=users, image=image, tell=progress)
    show(rows, as_json=as_json, title=f"{settings.model}, {users} people, {minutes:g} minutes")


async def bench_load(
    settings: Settings,
    *,
    minutes: float,
    users: int,
    turns: int,
    speed: float,
    seed: int,
    trace: Path | None,
    texts: Path | None,
    image: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """People with arrival and think times, against the raw engine used directly."""
    from rallychat.bench.load import run_load

    rows = await run_load(
        settings, minutes=minutes, users=users, turns=turns, speed=speed, seed=seed, trace=trace, texts=texts,
        image=image, out=out, tell=progress,
    )  # fmt: skip
    where = "times of the trace" if trace else f"times made up in the trace's shape, seed {seed}"
    show(
        rows,
        as_json=as_json,
        title=f"{settings.model}, {users} people, {where}, thinking {speed:g} times as fast",
    )


async def bench_hf(
    *,
    shape: str,
    users: str,
    prompt: int,
    max_tokens: int,
    arms: str,
    dtype: str,
    rounds: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """The Transformers engine on random weights, beside plain `generate` in the same run."""
    from rallychat.bench.hf import run_hf

    rows = await run_hf(
        shape=shape,
        users=numbers(users, name="users"),
        prompt=prompt,
        max_tokens=max_tokens,
        arms=[name for name in arms.split(",") if name],
        dtype=dtype,
        rounds=rounds,
        folder=folder,
    )
    show(rows, as_json=as_json, title=f"{shape}, random weights, {prompt} tokens in, {max_tokens} out")


async def bench_context(
    settings: Settings,
    *,
    files: Sequence[Path],
    strategies: str,
    budgets: str,
    make: int,
    seed: int,
    meaning: bool,
    by_rule: bool,
    reading: float | None,
    as_json: bool,
) -> None:
    """What each strategy keeps of recorded conversations, and what it costs; or makes such conversations."""
    from rallychat.bench import replays
    from rallychat.bench.context import approximate, counted_by_model, run_context
    from rallychat.context.embedding import embedder

    if make:
        folder = files[0] if files else Path()
        written = replays.write([replays.made(seed + n) for n in range(make)], folder, stem="made")
        print(*written, sep="\n")
        return
    found = [
        path for named in files for path in (sorted(named.glob("*.json")) if named.is_dir() else [named])
    ]
    if not found:
        raise InvalidRequest("There are no conversations to replay.", hint="name files, or --make some")
    counts = numbers(budgets, name="budgets")
    read = [replays.read(path) for path in found]
    count = None if by_rule else await counted_by_model(settings, read)
    rows = run_context(
        read,
        strategies=strategies.split(","),
        budgets=counts,
        count=count or approximate,
        embedder=embedder() if meaning else None,
        reading=reading,
    )
    by = f"tokens of {settings.model}" if count else "approximate tokens"
    show(rows, as_json=as_json, title=f"{len(found)} conversations, {by}; recall in %, costs over new tokens")


async def bench_turns(
    settings: Settings,
    *,
    turns: int,
    think: str,
    question_tokens: str | None,
    ways: Sequence[str],
    texts: Path | None,
    minutes: float | None,
    image: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time to first token over a long conversation, in five ways to keep its context."""
    from rallychat.bench.turns import WAITED, WORKED, asked_in, run_turns

    try:
        seconds = [float(part) for part in think.split(",")]
    except ValueError as exc:
        raise InvalidRequest(f"--think wants seconds like 0,2; it got '{think}'.", param="think") from exc
    tokens = _range(question_tokens)
    found = await run_turns(
        settings, turns=turns, think=seconds, texts=texts, question_tokens=tokens, ways=ways, minutes=minutes,
        image=image, out=out, tell=progress,
    )  # fmt: skip
    ended = "" if found.turns == turns else f", ended after {found.turns}"
    title = f"{settings.model}, {turns} turns{asked_in(tokens)}{ended}"
    if as_json:
        show(found.rows, as_json=True, title=title)
        return
    for part, columns in (("time to first token", WAITED), ("work", WORKED)):
        rows = [{name: row[name] for name in ("way", "think_s", *columns)} for row in found.rows]
        show(rows, as_json=False, title=f"{title}: {part}")


def _range(tokens: str | None) -> range | None:
    if tokens is None:
        return None
    least, _, most = tokens.partition("-")
    if not (least.isdecimal() and most.isdecimal() and 0 < int(least) <= int(most)):
        raise InvalidRequest(
            f"--question-tokens wants a range like 25-35; it got '{tokens}'.", param="question_tokens"
        )
    return range(int(least), int(most) + 1)


async def bench_neighbours(
    settings: Settings, *, people: int, turns: int, rounds: int, as_json: bool
) -> None:
    """What people notice of other conversations that are compacted meanwhile."""
    from rallychat.bench.neighbours import run_neighbours

    rows = await run_neighbours(settings, people=people, turns=turns, rounds=rounds, tell=progress)
    show(rows, as_json=as_json, title=f"{settings.model}, {people} people, {turns} turns, {rounds} rounds")


async def bench_fair(
    settings: Settings,
    *,
    people: int,
    flood: int,
    minutes: float,
    rounds: int,
    max_tokens: int,
    as_json: bool,
) -> None:
    """What people notice of one who floods the service."""
    from rallychat.bench.fair import run_fair

    rows = await run_fair(
        settings, people=people, flood=flood, minutes=minutes, rounds=rounds, max_tokens=max_tokens,
        tell=progress,
    )  # fmt: skip
    title = f"{settings.model}, {settings.slots} slots, {people} people, a flood of {flood}, {rounds} rounds"
    show(rows, as_json=as_json, title=title)


async def bench_answers(settings: Settings, *, fillers: str, as_json: bool) -> None:
    """What the model still knows of facts that were told long before."""
    from rallychat.bench.answers import run_answers

    rows = await run_answers(settings, fillers=[0, *numbers(fillers, name="fillers")], tell=progress)
    show(rows, as_json=as_json, title=f"{settings.model}: facts told early, asked late")


def progress(line: str) -> None:
    """How far a measurement is, beside its rows."""
    print(line, file=sys.stderr, flush=True)


def numbers(text: str, *, name: str) -> list[int]:
    """The positive numbers in "1,4,8".

    Raises:
        InvalidRequest: something else is in it.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise InvalidRequest(f"--{name} wants numbers like 1,4,8; it got '{text}'.", param=name) from exc
    if min(found) < 1:
        raise InvalidRequest(f"--{name} wants numbers above 0; it got '{text}'.", param=name)
    return found


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str) -> None:
    """Print rows that have the same columns: a table, or JSON on standard output."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], ensure_ascii=False, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    console.print(title, style="dim")
    console.print(table)
