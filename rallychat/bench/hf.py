"""`rallychat bench hf`: the Transformers engine on a checkpoint of random weights, beside plain `generate`.

Weights are random, but their number and the work are those of the real shape: speed is the same, words are not.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rallychat.bench.arms import Arm, Prompt, Round, child
from rallychat.engines.client import EngineClient
from rallychat.engines.hf_options import require_libraries
from rallychat.engines.process import WorkerProcess
from rallychat.engines.protocol import CompletionRequest, Tokens, WorkerSpec
from rallychat.errors import InvalidRequest

LOAD: Final = 600.0
"""Seconds a worker may take to load, and to be silent: the first step captures graphs."""
THREADS: Final = 8
"""Users of the arms that run a thread per user: more only take longer."""


@dataclass(frozen=True, slots=True)
class _Arm:
    """One row's way to answer. `adapters`: 0 none, 1 merged, 2 apart."""

    what: str
    quantize: str = "none"
    adapters: int = 1
    ours: bool = True
    merge: bool = True
    several: bool = True
    """More than one user, too."""
    multi_gpu: bool = False


ARMS: Final[dict[str, _Arm]] = {
    "merged": _Arm("rallychat, LoRA merged"),
    "apart": _Arm("rallychat, 2 LoRAs apart", adapters=2),
    "multi-gpu": _Arm("rallychat, LoRA merged, over all GPUs", multi_gpu=True),
    "int8": _Arm("rallychat, int8, LoRA merged", quantize="int8"),
    "int4": _Arm("rallychat, int4, LoRA merged", quantize="int4"),
    "generate": _Arm("generate, LoRA not merged", ours=False, merge=False, several=False),
    "generate-merged": _Arm("generate, LoRA merged, a thread per user", ours=False),
    "generate-int8": _Arm("generate, int8 of bitsandbytes", "int8", 0, ours=False, several=False),
    "generate-int4": _Arm("generate, nf4 of bitsandbytes", "int4", 0, ours=False, several=False),
}
_QUANTISED_PLAIN: Final = ("generate-int8", "generate-int4")


async def run_hf(
    *,
    shape: str,
    users: Sequence[int],
    prompt: int,
    max_tokens: int,
    arms: Sequence[str] = (),
    dtype: str = "bfloat16",
    rounds: int = 3,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """One row per arm and number of users.

    Columns: `arm`, `users`, `tokens_per_s` (of all users together, their prompts' time included; median over the
    rounds), `after_first` (of one user, once its first token is there), `first_ms` (median), `load_s`.

    Raises:
        InvalidRequest: there is no such shape or arm.
        EngineUnavailable: a library is missing.
    """
    require_libraries()
    from rallychat.bench.hf_shape import SHAPES, make_adapter, make_checkpoint

    if shape not in SHAPES:
        raise InvalidRequest(f"There is no shape '{shape}'; there are {', '.join(SHAPES)}.", param="shape")
    if wrong := next((name for name in arms if name not in ARMS), None):
        raise InvalidRequest(f"There is no arm '{wrong}'; there are {', '.join(ARMS)}.", param="arms")
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        base, adapter = folder / shape, folder / f"{shape}-lora"
        if not (base / "tokenizer.json").exists():
            await asyncio.to_thread(make_checkpoint, SHAPES[shape], base)
            await asyncio.to_thread(make_adapter, SHAPES[shape], adapter)
        spec = WorkerSpec("transformers", shape, str(base), slots=max(users), window=prompt + max_tokens + 64)
        for name in arms or [name for name in ARMS if _possible(name)]:
            options = {"adapters": _adapters(ARMS[name], adapter), "dtype": dtype}
            rows += await _measured(
                ARMS[name], spec, options, users, _Task(prompt, max_tokens, rounds, SHAPES[shape].vocabulary)
            )
    return rows


def _possible(name: str) -> bool:
    """One GPU is not several; bitsandbytes' own layers are only compared with where they are meant to run."""
    import torch

    if ARMS[name].multi_gpu:
        return int(torch.cuda.device_count()) > 1
    return name not in _QUANTISED_PLAIN or bool(torch.cuda.is_available())


def _adapters(arm: _Arm, folder: Path) -> dict[str, str]:
    return {f"lora{n}": str(folder) for n in range(arm.adapters)}


@dataclass(frozen=True, slots=True)
class _Task:
    prompt: int
    max_tokens: int
    rounds: int
    vocabulary: int

    def prompts(self, users: int, seed: int) -> list[Prompt]:
        """Random prompts: none begins as another does."""
        chance = random.Random(seed)  # noqa: S311
        return [
            Prompt([], [chance.randrange(3, self.vocabulary) for _ in range(self.prompt)])
            for _ in range(users)
        ]


async def _measured(
    arm: _Arm, spec: WorkerSpec, options: dict[str, Any], users: Sequence[int], task: _Task
) -> list[dict[str, Any]]:
    began = time.monotonic()
    options = options | {"quantize": arm.quantize, "multi_gpu": arm.multi_gpu}
    opening = (
        _worker(arm, replace(spec, options=options))
        if arm.ours
        else child(
            arm.what, "rallychat.bench.hf_plain", replace(spec, options=options | {"merge": arm.merge})
        )
    )
    rows = []
    async with opening as running:
        loaded = time.monotonic() - began
        for count in users:
            many = count if arm.ours else min(count, THREADS)
            if many > 1 and not arm.several:
                continue
            await running.answer(task.prompts(many, -count), task.max_tokens if arm.ours else 4)  # warms up
            found = [
                await running.answer(task.prompts(many, seed), task.max_tokens)
                for seed in range(task.rounds if arm.ours else 1)
            ]
            rows.append(_row(arm, many, found, loaded))
    return rows


def _row(arm: _Arm, users: int, found: Sequence[Round], loaded: float) -> dict[str, Any]:
    after = [
        (one.tokens / users - 1) / (one.seconds - statistics.median(one.first))
        for one in found
        if one.seconds > statistics.median(one.first)
    ]
    return {
        "arm": arm.what,
        "users": users,
        "tokens_per_s": round(statistics.median(one.tokens / one.seconds for one in found), 1),
        "after_first": round(statistics.median(after), 1) if after else None,
        "first_ms": round(1000 * statistics.median(first for one in found for first in one.first), 1),
        "load_s": round(loaded, 1),
    }


class _Worker:
    """Our worker, over its socket, each user in a slot of its own."""

    def __init__(self, name: str, client: EngineClient, adapters: Sequence[str]) -> None:
        self.name = name
        self._client = client
        self._adapters = adapters

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        """See `Arm`."""
        began = time.monotonic()
        done = await asyncio.gather(
            *(self._one(slot, prompt, max_tokens) for slot, prompt in enumerate(prompts))
        )
        return Round(sum(t for t, _ in done), time.monotonic() - began, tuple(f for _, f in done))

    async def _one(self, slot: int, prompt: Prompt, max_tokens: int) -> tuple[int, float]:
        began = time.monotonic()
        first, count = 0.0, 0
        request = CompletionRequest(
            model=self._adapters[slot % len(self._adapters)] if len(self._adapters) > 1 else "",
            prompt=prompt.ids,
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            slot=slot,
        )
        async for event in self._client.generate(request):
            if isinstance(event, Tokens):
                first = first or time.monotonic() - began
                count += len(event.ids)
        return count, first


@asynccontextmanager
async def _worker(arm: _Arm, spec: WorkerSpec) -> AsyncIterator[Arm]:
    worker = WorkerProcess(spec, load_timeout=LOAD, stall_timeout=LOAD)
    try:
        await worker.start()
        yield _Worker(arm.what, worker.client, list((spec.options or {})["adapters"]))
    finally:
        await worker.stop()
