"""`rallychat bench soak`: many people chat for half an hour; does anything grow that should not?

Every few seconds the server and its worker are looked at from outside: memory, files, threads, and what the server
says of itself. The first part is left out as warming up; a line is laid through the rest. When all have gone, nothing
may be left busy.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from rallychat.bench import plot
from rallychat.bench.chaos import called_off, world_of
from rallychat.bench.client import PATIENCE, Plain, Sent, Talker
from rallychat.bench.server import ServerProcess, running
from rallychat.bench.turns import wish_to_stop
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings

EVERY = 5.0
"""Seconds between two looks."""
WARM = 0.3
"""Part of the time that counts as warming up."""
THINK = (0.5, 4.0)
"""Seconds a person thinks."""
TURNS = 10
"""Messages of a conversation; then the person begins another."""
TOKENS = 32
QUESTION = "{name} What should I know about the number {turn}? Answer in a few sentences."
SETTLE = 60.0

Look = dict[str, float]


@dataclass
class Heard:
    """What all people together have had; without answers, flat memory would prove nothing."""

    answers: int = 0
    failed: int = 0
    """Of these: ended with an error, or interrupted."""
    gaps: int = 0
    repeats: int = 0
    stuck: int = 0
    """People who still waited at the very end."""
    refusals: Counter[str] = field(default_factory=Counter)
    people: list[Talker] = field(default_factory=list)

    def of(self, sent: Sent) -> None:
        """An answer that has ended."""
        self.answers += 1
        self.failed += sent.ended == "response.failed"
        self.gaps += sent.gaps
        self.repeats += sent.repeats

    def so_far(self) -> Look:
        """As part of a look."""
        refused = sum(count for status, count in self.refusals.items() if status.isdecimal())
        counts = {name: getattr(self, name) for name in ("answers", "failed", "gaps", "repeats", "stuck")}
        counts |= {"refused": refused, "cut": sum(each.broken for each in self.people)}
        return {name: float(count) for name, count in counts.items()}


async def run_soak(
    settings: Settings,
    *,
    minutes: float,
    users: int,
    image: Path | None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row a measure; Ctrl-C ends it early, with what there is.

    Columns: `measure`, `before` (anybody came), `warm` (median of the first tenth after warming up), `last` (median of
    the last tenth), `most`, `slope_per_hour` (of a line through all after warming up), `after` (everybody has gone).
    """
    rng = random.Random(1)  # noqa: S311 - who thinks how long
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        own = world_of(settings, folder)
        server = ServerProcess(own, own.model, arguments=["--slots", str(own.slots)])
        await stack.enter_async_context(running(server))
        http = httpx.AsyncClient(
            base_url=server.url,
            timeout=PATIENCE * 6,
            trust_env=False,
            limits=httpx.Limits(max_connections=users * 2),
        )
        await stack.enter_async_context(http)
        heard = Heard()
        line = Plain(http, server.model, max_tokens=TOKENS)
        before, over = await _look(server, http, heard), asyncio.Event()
        heard.people = [Talker(line, http, heard.refusals, rng) for _ in range(users)]
        people = [
            asyncio.create_task(_chat(each, number, over, rng, heard))
            for number, each in enumerate(heard.people)
        ]
        try:
            looks = await _watch(server, http, people, minutes * 60, heard, tell)
            over.set()
            _, stuck = await asyncio.wait(people, timeout=SETTLE)
        finally:
            await called_off(people)
        await http.aclose()
        heard.stuck = len(stuck)
        after = await _quiet(server, heard, tasks=before["tasks"])
    for said, count in heard.refusals.items():
        tell(f"refused {count}: {said}")
    if image is not None and looks:
        shown = {name: [look[name] for _, look in looks] for name in ("server_mb", "worker_mb")}
        plot.lines(image, shown, title=f"{users} people, {minutes:g} minutes", across="looks", up="MB")
    return rows(before, looks, after)


async def _chat(me: Talker, number: int, over: asyncio.Event, rng: random.Random, heard: Heard) -> None:
    turn, conversation = 0, ""
    while not over.is_set():
        if turn % TURNS == 0:
            conversation = await me.conversation(f"conversation-{number}-{turn}")
        text = QUESTION.format(name=f"n{number}t{turn}.", turn=turn)
        sent = Sent(text, f"key-{number}-{turn}", conversation)
        await me.say(sent)
        heard.of(sent)
        turn += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), rng.uniform(*THINK))


async def _watch(
    server: ServerProcess,
    http: httpx.AsyncClient,
    people: Sequence[asyncio.Task[None]],
    seconds: float,
    heard: Heard,
    tell: Callable[[str], None],
) -> list[tuple[float, Look]]:
    began, looks = time.monotonic(), list[tuple[float, Look]]()
    every = min(EVERY, seconds / 20)
    with wish_to_stop() as stop:
        while time.monotonic() < began + seconds and not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every)
            broken = next((each for each in people if each.done()), None)
            if broken is not None:
                broken.result()
            at, look = time.monotonic() - began, await _look(server, http, heard)
            looks.append((at, look))
            if len(looks) % 6 == 0:
                memory = f"server {look['server_mb']:.0f} MB, worker {look['worker_mb']:.0f} MB"
                tell(
                    f"{at:6.0f} s  {memory}, {look['server_files']:.0f} files, {look['answers']:.0f} answers"
                )
    return looks


async def _look(server: ServerProcess, http: httpx.AsyncClient, heard: Heard) -> Look:
    """How server and worker stand, and what people have had of them."""
    try:
        process = psutil.Process(server.pid)
        workers = server.workers()
        found = {
            "server_mb": process.memory_info().rss / 2**20,
            "worker_mb": sum(each.memory_info().rss for each in workers) / 2**20,
            "workers": float(len(workers)),
            "server_files": float(process.num_fds()),
            "worker_files": float(sum(each.num_fds() for each in workers)),
            "server_threads": float(process.num_threads()),
            "server_sockets": float(len(process.net_connections(kind="all"))),
        }
    except psutil.Error as exc:
        raise EngineUnavailable(f"The server cannot be looked at: {server.last_words}") from exc
    said = await http.get("/metrics")
    for name in ("tasks", "runs", "slots_busy", "queue_length"):
        found[name] = sum(
            float(line.rpartition(" ")[2])
            for line in said.text.splitlines()
            if line.startswith((f"rallychat_{name}{{", f"rallychat_{name} "))
        )
    return found | heard.so_far()


async def _quiet(server: ServerProcess, heard: Heard, *, tasks: float) -> Look:
    """A last look, when nothing is busy any more: what idle time does, too, has been done, so that `tasks` are left."""
    until = time.monotonic() + SETTLE
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
        while True:
            look = await _look(server, http, heard)
            busy = look["runs"] + look["slots_busy"] + look["queue_length"]
            if (not busy and look["tasks"] <= tasks) or time.monotonic() > until:
                return look
            await asyncio.sleep(1)


def rows(before: Look, looks: Sequence[tuple[float, Look]], after: Look) -> list[dict[str, Any]]:
    """The table."""
    warm = list(looks[int(len(looks) * WARM) :])
    part = max(1, len(warm) // 10)
    table = []
    for name in before:
        values = [look[name] for _, look in warm]
        slope = 0.0
        if len(warm) > 1:
            slope = statistics.linear_regression([at for at, _ in warm], values).slope * 3600
        table.append(
            {
                "measure": name,
                "before": round(before[name], 1),
                "warm": round(statistics.median(values[:part]), 1) if values else None,
                "last": round(statistics.median(values[-part:]), 1) if values else None,
                "most": round(max(values), 1) if values else None,
                "slope_per_hour": round(slope, 1),
                "after": round(after[name], 1),
            }
        )
    return table
