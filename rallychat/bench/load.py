"""`rallychat bench load`: people who come, ask, read and think, against the same engine used directly.

Three arms answer the same people in turn, round by round: RallyChat, which keeps the conversation; the raw engine with
each person's slot chosen by hand; and the raw engine as a plain llama-server, which picks a slot itself and keeps in
memory what had to leave one. Both of these are sent the whole history each time. While one arm is measured the others
stand still, their processes stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import orjson

from rallychat.bench import plot
from rallychat.bench.client import Cut, Plain, Refused, Sent
from rallychat.bench.folders import apart
from rallychat.bench.people import Person, Turn, made_up, rounds, traced
from rallychat.bench.server import ServerProcess, dies_with_us, free_port, running
from rallychat.bench.turns import share, wish_to_stop
from rallychat.catalog import ANY
from rallychat.chat import ChatService
from rallychat.engines.protocol import WorkerSpec
from rallychat.errors import EngineUnavailable
from rallychat.settings import Settings
from rallychat.sources import weights_path

PATIENCE = 120.0
WINDOW = 2048
CUT, EMPTY = "the stream ended early", "not a token was said"
UNENDED = "its round was cut off"
DELTAS = frozenset({"response.output_text.delta", "response.reasoning_text.delta"})
TEXTS = ("content", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Said:
    """One turn as its person saw it; a failed one has only its failure."""

    first_ms: float = 0.0
    tokens: int = 0
    prompt: int = 0
    cached: int = 0
    failure: str = ""


@dataclass
class Told:
    """All that one arm was seen to do."""

    said: list[Said] = field(default_factory=list)
    seconds: float = 0.0
    rounds: int = 0


class Arm(Protocol):
    """A way to be answered."""

    name: str

    async def talk(self, person: Person, number: int, tell: Callable[[Said], None]) -> None:
        """One person's whole visit."""
        ...

    def pause(self, *, paused: bool) -> None:
        """Stops its processes, or lets them go on."""
        ...


@contextmanager
def _also_unended(tell: Callable[[Said], None]) -> Iterator[None]:
    """Tells of a turn that is under way when its round is cut off."""
    try:
        yield
    except asyncio.CancelledError:
        tell(Said(failure=UNENDED))
        raise


class Ours:
    """RallyChat: a conversation on the server, and each time only what is new."""

    name = "rallychat"

    def __init__(self, server: ServerProcess, http: httpx.AsyncClient) -> None:
        self._server = server
        self._http = http

    async def talk(self, person: Person, number: int, tell: Callable[[Said], None]) -> None:
        """See `Arm`."""
        conversation = (await self._http.post("/v1/conversations", json={})).json()["id"]
        for turn in person.turns:
            await asyncio.sleep(turn.think)
            with _also_unended(tell):
                said = await self._say(turn, conversation)
            tell(said)

    async def _say(self, turn: Turn, conversation: str) -> Said:
        line = Plain(self._http, self._server.model, max_tokens=turn.max_tokens, temperature=0)
        sent = Sent(turn.text, os.urandom(8).hex(), conversation)
        began, first, usage = time.monotonic(), 0.0, None
        try:
            async with aclosing(line.events(sent)) as events:
                async for event in events:
                    kind = event.get("type", "error")
                    if not first and kind in DELTAS:
                        first = time.monotonic() - began
                    if kind in ("response.failed", "error"):
                        return Said(failure=str(event.get("response", event)["error"])[:200])
                    usage = (event.get("response") or {}).get("usage")
        except (Cut, Refused, KeyError) as exc:
            return Said(failure=str(exc)[:200])
        if not usage or not first:
            return Said(failure=CUT if not usage else EMPTY)
        cached = usage["input_tokens_details"]["cached_tokens"]
        return Said(first * 1000, usage["output_tokens"], usage["input_tokens"], cached)

    def pause(self, *, paused: bool) -> None:
        """See `Arm`."""
        self._server.freeze() if paused else self._server.thaw()


class Direct:
    """The raw engine over its own HTTP, with the whole history each time.

    Args:
        slots: how many there are, each person keeps one of them; None: the engine chooses.
        penalty: on repetition, as RallyChat asks for it; without it answers are as long as they are not there.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        http: httpx.AsyncClient,
        *,
        slots: int | None,
        penalty: float,
    ) -> None:
        self.name = name
        self._process = process
        self._http = http
        self._slots = slots
        self._penalty = penalty

    async def talk(self, person: Person, number: int, tell: Callable[[Said], None]) -> None:
        """See `Arm`."""
        history: list[dict[str, str]] = []
        slot = {} if self._slots is None else {"id_slot": number % self._slots}
        for turn in person.turns:
            await asyncio.sleep(turn.think)
            history.append({"role": "user", "content": turn.text})
            with _also_unended(tell):
                said, answer = await self._say(history, turn.max_tokens, slot)
            history.append({"role": "assistant", "content": answer})
            tell(said)

    async def _say(
        self, history: Sequence[dict[str, str]], max_tokens: int, slot: dict[str, int]
    ) -> tuple[Said, str]:
        body = {
            "messages": list(history), "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True,
            "repeat_penalty": self._penalty, "repeat_last_n": WINDOW, **slot,
        }  # fmt: skip
        began, first, answer, usage = time.monotonic(), 0.0, "", dict[str, Any]()
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    return Said(failure=f"{response.status_code} {(await response.aread())[:200]!r}"), answer
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = orjson.loads(line[6:])
                    if "error" in chunk:
                        return Said(failure=str(chunk["error"])[:200]), answer
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"]:
                        text, thought = (choice["delta"].get(name) or "" for name in TEXTS)
                        first = first or (time.monotonic() - began if text or thought else 0.0)
                        answer += text
        except httpx.HTTPError as exc:
            return Said(failure=f"{type(exc).__name__} {exc}"), answer
        if not usage or not first:
            return Said(failure=CUT if not usage else EMPTY), answer
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return Said(first * 1000, usage["completion_tokens"], usage["prompt_tokens"], cached), answer

    def pause(self, *, paused: bool) -> None:
        """See `Arm`."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)


@asynccontextmanager
async def _engine(
    spec: WorkerSpec, threads: int, *, plain: bool
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The raw engine's server and its address, until the block ends."""
    port, pipe = free_port(), asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rallychat.bench.llama_server"),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,
        preexec_fn=dies_with_us,  # a frozen one does not notice that its input has ended
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        job = {"spec": asdict(spec), "port": port, "threads": threads, "plain": plain}
        process.stdin.write(json.dumps(job).encode() + b"\n")
        while b'"ready"' not in (line := await process.stdout.readline()):
            if not line:
                raise EngineUnavailable("The raw engine did not start; its error stands above.")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run_load(
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
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row an arm; Ctrl-C ends it early with the rounds that all arms have had.

    Columns: `arm`, `rounds`, `turns`, `failures`, `unended` (under way when a round was cut off), `first_ms` and
    `first_p95_ms` (time to first token), `tokens_per_s` (of all people together, thinking included), `cached_share` (of
    all prompt tokens).

    Raises:
        InvalidRequest: a file is not what it should be. EngineUnavailable: an arm could not be started.
    """
    habits = traced(trace) if trace else made_up(seed)
    plan = rounds(habits, texts, users=users, turns=turns, speed=speed, seed=seed)
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(wish_to_stop())  # first: what is frozen must not be left behind
        arms = await _arms(settings, users, stack)
        found = {arm.name: Told() for arm in arms}
        until, longest, number = time.monotonic() + minutes * 60, 0.0, 0
        while not stop.is_set() and (not number or time.monotonic() + longest < until):
            began, people = time.monotonic(), next(plan)
            before = {name: replace(told, said=[*told.said]) for name, told in found.items()}
            for at in range(len(arms)):
                arm = arms[(at + number) % len(arms)]
                limit = max(30.0, (until - time.monotonic()) / (len(arms) - at))
                await _measured(arm, people, found[arm.name], limit, stop, out)
                tell(_progress(number + 1, arm.name, found[arm.name]))
            longest, number = max(longest, time.monotonic() - began), number + 1
            if stop.is_set():
                found = before
                tell(f"stopped in round {number}, which does not count")
    if image is not None:
        curves = {name: _percentiles(told) for name, told in found.items() if _ended(told)}
        if curves:
            plot.lines(image, curves, title="Time to first token", across="percentile", up="ms")
    return [_row(name, told) for name, told in found.items()]


async def _arms(settings: Settings, users: int, stack: AsyncExitStack) -> list[Arm]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
    settings = apart(settings, folder)
    async with ChatService.open(settings) as chat:
        model = chat.resolve(None)
        penalty = chat.sampling(model, ANY).repetition_penalty or 1.0
        await chat.load(chat.settings.model)  # fetched, if it is not here
    slots = settings.slots
    flags = ["--slots", str(slots), "--window", str(WINDOW)]
    server = await stack.enter_async_context(running(ServerProcess(settings, model.id, arguments=flags)))
    path = str(weights_path(model, settings))
    spec = WorkerSpec("llamacpp", model.id, path, slots=slots, window=WINDOW, threads=settings.threads)
    # an engine each: what one of them has read must not be in the other's cache
    (by_hand, here), (plain, there) = [
        await stack.enter_async_context(_engine(spec, users + 4, plain=stock)) for stock in (False, True)
    ]

    async def to(address: str) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=users + 4)
        http = httpx.AsyncClient(base_url=address, timeout=PATIENCE, trust_env=False, limits=limits)
        return await stack.enter_async_context(http)

    arms: list[Arm] = [
        Ours(server, await to(server.url)),
        Direct("raw engine, slots by hand", by_hand, await to(here), slots=slots, penalty=penalty),
        Direct("llama-server style", plain, await to(there), slots=None, penalty=penalty),
    ]
    for arm in arms:
        warm = Person(0.0, (Turn("Hello!", 0.0, 4),))
        await arm.talk(warm, 0, lambda _: None)
        arm.pause(paused=True)
    return arms


async def _measured(
    arm: Arm, people: Sequence[Person], told: Told, limit: float, stop: asyncio.Event, out: Path | None
) -> None:
    """One round of one arm; cut off at its limit, with what had ended by then."""
    if stop.is_set():
        return
    began = time.monotonic()

    def seen(said: Said) -> None:
        told.said.append(said)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"arm": arm.name, "round": told.rounds + 1, **asdict(said)}) + "\n")

    async def visit(person: Person, number: int) -> None:
        await asyncio.sleep(person.arrives)
        await arm.talk(person, number, seen)

    arm.pause(paused=False)
    visits = [asyncio.ensure_future(visit(person, number)) for number, person in enumerate(people)]
    stopping = asyncio.ensure_future(stop.wait())
    everybody = asyncio.gather(*visits)
    try:
        first: set[asyncio.Future[Any]] = {everybody, stopping}
        await asyncio.wait(first, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if everybody.done():
            everybody.result()
    finally:
        for each in (*visits, stopping):
            each.cancel()
        await asyncio.gather(*visits, everybody, stopping, return_exceptions=True)
        told.seconds += time.monotonic() - began
        told.rounds += 1
        arm.pause(paused=True)


def _ended(told: Told) -> list[Said]:
    return [said for said in told.said if not said.failure]


def _percentiles(told: Told) -> list[float]:
    times = [said.first_ms for said in _ended(told)]
    return [share(times, part / 100) for part in range(1, 100)]


def _progress(number: int, name: str, told: Told) -> str:
    row = _row(name, told)
    return f"round {number}, {name}: {row['turns']} turns, first token {row['first_ms']} ms, {row['failures']} failed"


def _row(name: str, told: Told) -> dict[str, Any]:
    ended, unended = _ended(told), sum(said.failure == UNENDED for said in told.said)
    times, prompt = [said.first_ms for said in ended], sum(said.prompt for said in ended)
    return {
        "arm": name,
        "rounds": told.rounds,
        "turns": len(ended),
        "failures": len(told.said) - len(ended) - unended,
        "unended": unended,
        "first_ms": round(statistics.median(times)) if times else None,
        "first_p95_ms": round(share(times, 0.95)) if times else None,
        "tokens_per_s": round(sum(said.tokens for said in ended) / told.seconds, 1) if told.seconds else None,
        "cached_share": round(sum(said.cached for said in ended) / prompt, 3) if prompt else None,
    }
