"""How fast this machine is with long prompts: measured once per model in idle time, kept in the data folder.
Until there was such time, the answers themselves show how fast it reads.

From it follows up to which length a prompt's first token comes nearly as soon as that of a short one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from rallychat import __version__
from rallychat.context.types import Pace
from rallychat.engines.protocol import CompletionRequest, Piece, WorkerSpec
from rallychat.pool import Engine, Priority, Slot
from rallychat.settings import Settings

log = logging.getLogger(__name__)

SHORT = 512
"""Tokens of a short context: about where a conversation's second to tenth turn are."""
LENGTHS = (SHORT, 768, 1024, 1536, 2048, 3072, 4096, 6144)
NEW = 50
"""Tokens of a new turn."""
TRIES = 3
FELT = 20.0
"""Milliseconds below which nobody feels a difference: such an engine needs no limit."""
CAREFUL = 1024
"""Tokens of a prompt up to which a machine that was not measured, and is felt, is taken to be fast."""
_FILLER = (
    "Paragraph {n}. The {n}th boat left the harbour with {n} crates of lemons, and the keeper of the light wrote "
    "down the hour, the wind and the colour of its sail before he went back to his book about the stars. "
)

_PACKAGES = {"llamacpp": ("xllamacpp",), "transformers": ("torch", "transformers")}
"""What an engine's speed comes from: another version is measured anew."""

Points = list[tuple[int, float]]
"""Cached tokens, and the milliseconds until `NEW` more were evaluated."""


def limit_of(points: Sequence[tuple[int, float]], factor: float) -> int | None:
    """The longest context whose first token takes at most `factor` times that of the first point.

    Between two points it is taken to grow evenly. None: all measured lengths are fast enough.
    """
    if not points or points[0][1] < FELT:
        return None
    most = (
        min(took for _, took in points) * factor
    )  # a short one is never slower than a long one, but by chance
    for (near, fast), (far, slow) in itertools.pairwise(points):
        if slow > most:
            return near if fast >= most else int(near + (far - near) * (most - fast) / (slow - fast))
    return None


class Latencies:
    """What was measured on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.data_dir / "latency.json"
        self._known: dict[str, Points] = _read(self._path)
        self._keys: dict[str, tuple[Engine, str]] = {}
        self._partly: dict[str, Points] = {}
        self._measuring: set[str] = set()

    def pace(self, model_id: str) -> Pace | None:
        """What follows for the budget of a model; None: nothing is known yet."""
        factor = self._settings.latency_factor
        engine, key = self._keys.get(model_id, (None, ""))
        if not factor or engine is None:
            return None
        points = self._known.get(key, [])
        if not points:
            return _guess(engine)
        read = NEW if engine.info.extends else SHORT + NEW
        limit, reading = limit_of(points, factor), points[0][1] / read
        if limit is None:
            return Pace(reading)
        why = (
            f"on this machine the first token comes within {factor:g} times that after {SHORT} tokens "
            f"({points[0][1]:.0f} ms) up to {limit} tokens"
        )
        return Pace(reading, limit, why)

    def opened(self, model_id: str, engine: Engine) -> None:
        """The model runs here, in this way."""
        known = self._keys.get(model_id)
        if known is None or known[0] is not engine:
            self._keys[model_id] = (engine, key_of(engine.spec))

    async def measure(self, engine: Engine) -> None:
        """Measures an engine that was not measured yet. Another time, where it is busy with something else.

        Raises:
            Preempted: somebody wants the engine; what was measured so far is kept.
            Crowded: no slot is free without harm.
        """
        key = key_of(engine.spec)
        lengths = [length for length in LENGTHS if length + 2 * NEW < engine.info.window]
        done = key in self._known or key in self._measuring
        if not self._settings.latency_factor or done or len(lengths) < 2:
            return
        if not engine.info.slot_affinity or engine.info.instant or engine.queue.busy:
            return
        self._measuring.add(key)
        try:
            ids = await _filler(engine, lengths[-1] + (TRIES + 1) * NEW)
            points = self._partly.setdefault(key, [])
            async with engine.slot(ids, priority=Priority.TITLES, apart="only") as slot:
                for length in lengths[len(points) :]:
                    took = await _time(engine, slot, ids, length)
                    if engine.queue.busy > 1:  # a batch has come, and this would be kept for ever
                        return
                    points.append((length, took))
                    if points[-1][1] > points[0][1] * self._settings.latency_factor * 1.25:
                        break
                    if points[0][1] < FELT:
                        break
        finally:
            self._measuring.discard(key)
        self._known[key] = self._partly.pop(key)
        _write(self._path, self._known)
        log.info("first token after so many tokens, in ms: %s", points)


def _guess(engine: Engine) -> Pace | None:
    """By what reading took in answers so far; None: nobody feels it, or there were none."""
    reading = engine.queue.costs.reading * 1000
    if reading * NEW < FELT or not engine.info.slot_affinity or engine.info.instant:
        return None
    why = (
        f"nobody has left this machine the time to measure its speed; a token of a prompt takes it {reading:.1f} ms, "
        f"and until it is measured {CAREFUL:,} tokens are taken to be as fast as a short prompt"
    )
    return Pace(reading, CAREFUL, why)


async def _time(engine: Engine, slot: Slot, ids: list[int], length: int) -> float:
    """Milliseconds until `NEW` tokens are evaluated behind `length` cached ones: the best of some tries."""
    await engine.warm(ids[:length], slot)
    best = float("inf")
    for number in range(TRIES):
        tail = ids[length + number * NEW : length + (number + 1) * NEW]
        request = CompletionRequest(
            model=engine.spec.model, prompt=[*ids[:length], *tail], max_tokens=0, temperature=0
        )
        began = time.monotonic()
        async with aclosing(engine.generate(request, slot)) as events:
            async for _ in events:
                pass
        best = min(best, (time.monotonic() - began) * 1000)
    return round(best, 2)


async def _filler(engine: Engine, count: int) -> list[int]:
    ids: list[int] = []
    number = 0
    while len(ids) < count:
        number += 1
        (more,) = await engine.client.tokenize([Piece(_FILLER.format(n=number), special=False)])
        ids += more
    return ids[:count]


def key_of(spec: WorkerSpec) -> str:
    """Names what the speed depends on: weights, how they run and by which versions, and the machine."""
    weights = Path(spec.path)
    size = weights.stat().st_size if weights.is_file() else 0
    facts = [spec.engine, spec.model, size, spec.slots, spec.window, spec.threads, spec.options]
    facts += [__version__, *(_version(package) for package in _PACKAGES.get(spec.engine, ()))]
    machine = [platform.machine(), platform.node(), os.cpu_count(), _processor()]
    return hashlib.blake2b(
        json.dumps([facts, machine], sort_keys=True, default=str).encode(), digest_size=12
    ).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _read(path: Path) -> dict[str, Points]:
    """What is in the file; nothing, where there is none or it is damaged: it can be measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): [(int(n), float(ms)) for n, ms in points] for k, points in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, known: dict[str, Points]) -> None:
    written = path.with_suffix(".new")
    try:
        written.write_text(json.dumps(known, indent=1), encoding="utf-8")
        written.replace(path)
    except OSError as exc:
        log.warning("what was measured cannot be kept in %s: %s", path, exc)
