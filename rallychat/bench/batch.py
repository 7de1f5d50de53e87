"""`rallychat bench batch`: a batch from file to file, against the raw engine whose slots are all busy all the time.

Both answer the same prompts with the same weights, greedily, in turn within one run; every prompt is new to both. The
batch is measured with all it does: reading the file, the journal, the output.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat import batches
from rallychat.api.batch_lines import BatchLines
from rallychat.bench import arms
from rallychat.bench.arms import Arm, Prompt, Round
from rallychat.bench.folders import apart
from rallychat.bench.serve import prompts_of
from rallychat.catalog.sizing import batch_slots
from rallychat.chat import ChatService
from rallychat.engines.protocol import WorkerSpec
from rallychat.settings import Settings
from rallychat.sources import weights_path

WINDOW = 1024
"""Tokens of a slot: prompts and answers here are short."""
LONGEST = 1024 * 1024


class Batch:
    """A batch of ours, over a service in this process."""

    name = "rallychat"

    def __init__(self, service: ChatService, folder: Path, slots: int) -> None:
        self._service = service
        self._folder = folder
        self._slots = slots
        self._runs = 0

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        """See `Arm`. The time to a first token is nobody's concern here."""
        self._runs += 1
        source = self._folder / f"{self._runs}.in.jsonl"
        facts = {"max_tokens": max_tokens, "temperature": 0, "repetition_penalty": 1.0}
        source.write_text("".join(json.dumps({"messages": p.messages} | facts) + "\n" for p in prompts))
        began = time.monotonic()
        asked = BatchLines(self._service, longest=LONGEST)
        record = batches.Journal(self._folder / f"{self._runs}.out.jsonl", {"input": self._runs})
        with source.open("rb") as stream, record as journal:
            lines = batches.read_lines(stream, longest=LONGEST)
            width, ahead = 2 * self._slots, batches.AHEAD * self._slots
            done = await batches.work(lines, asked.answer, journal, width=width, ahead=ahead)
            journal.finish()
        assert done.failed == 0, "a line of the benchmark was refused"
        return Round(done.tokens, time.monotonic() - began, ())


async def run_batch(
    settings: Settings, *, lines: int = 64, rounds: int = 3, max_tokens: int = 64
) -> list[dict[str, Any]]:
    """One row per arm.

    Columns: `slots`, `lines`, `arm`, `tokens_per_s` (median over the rounds), `of_raw` (median of the ratios round by
    round), `tokens`.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallychat-bench-")))
        own = apart(settings, folder).model_copy(update={"window": WINDOW})
        if "slots" not in settings.model_fields_set:
            async with ChatService.open(own) as service:
                own = own.model_copy(update={"slots": batch_slots(service.resolve(None), own)})
        slots = own.slots
        service = await stack.enter_async_context(ChatService.open(own))
        await service.load(own.model)
        model = service.resolve(None)
        prompts = iter(await prompts_of(service, slots + lines * rounds))
        path = str(weights_path(model, own))
        spec = WorkerSpec("llamacpp", model.id, path, slots=slots, window=WINDOW, threads=own.threads)
        raw = await stack.enter_async_context(arms.child("raw engine", "rallychat.bench.raw", spec))
        pair: list[Arm] = [raw, Batch(service, folder, slots)]
        warm = list(islice(prompts, slots))
        for arm in pair:
            await arm.answer(warm, 4)
        done: dict[str, list[Round]] = {arm.name: [] for arm in pair}
        for number in range(rounds):
            asked = list(islice(prompts, lines))
            for arm in pair if number % 2 else reversed(pair):
                done[arm.name].append(await arm.answer(asked, max_tokens))
    base = done["raw engine"]
    return [{"slots": slots, "lines": lines} | _row(name, found, base) for name, found in done.items()]


def _row(name: str, found: Sequence[Round], raw: Sequence[Round]) -> dict[str, Any]:
    ratios = [(r.tokens / r.seconds) / (b.tokens / b.seconds) for r, b in zip(found, raw, strict=True)]
    return {
        "arm": name,
        "tokens_per_s": round(statistics.median(r.tokens / r.seconds for r in found), 1),
        "of_raw": round(statistics.median(ratios), 3),
        "tokens": sum(r.tokens for r in found),
    }
