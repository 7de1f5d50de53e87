"""Hugging Face checkpoints inside a worker, through Transformers and PEFT.

`hf_loading` brings the model, `hf_decoder` and `hf_seq2seq` evaluate steps of it, `hf_steps` decides whose; here a
request becomes events. Transformers' own batching manager is not used: it keeps no slot between two turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final

from rallychat.engines.backend import BackendEvent, Copied, Step
from rallychat.engines.hf_options import options_of, require_libraries
from rallychat.engines.protocol import CompletionRequest, Done, EngineInfo, Piece, Prefill, WorkerSpec
from rallychat.engines.slots import Slot
from rallychat.errors import EngineInterrupted

PACE: Final = 0.025
"""Seconds after tokens were told until the next are, as in `rallychat.engines.llamacpp`."""


class Transformers:
    """One checkpoint. Opening it blocks until the weights are loaded."""

    def __init__(self, spec: WorkerSpec, *, folder: Path) -> None:
        options = options_of(spec)
        require_libraries()
        from rallychat.engines.hf_copies import Copies
        from rallychat.engines.hf_loading import load
        from rallychat.engines.hf_steps import Steps

        loaded = load(spec, options)
        self._tokenizer = loaded.tokenizer
        self._adapters = loaded.adapters
        self._ends = loaded.ends
        self.vocabulary = loaded.vocabulary
        self.info = EngineInfo(
            engine="transformers",
            window=loaded.window,
            slots=spec.slots,
            slot_affinity=True,
            token_ids=True,
            rollback=loaded.runner.rollback,
            extends=loaded.runner.extends,
            offload=loaded.runner.cache_bytes > 0,
            cache_bytes=loaded.runner.cache_bytes,
            chat_template=loaded.chat_template,
            bos_token=loaded.bos_token,
            eos_token=loaded.eos_token,
            control_tokens=loaded.tokenizer.control_tokens,
        )
        self._loop = asyncio.get_running_loop()
        self._steps = Steps(loaded.runner, chunk=loaded.chunk, loop=self._loop)
        self._copies = Copies(loaded.runner, self._steps, folder / "caches")

    async def tokenize(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """See `Backend`."""
        return [self._tokenizer.encode(piece) for piece in pieces]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `Backend`."""
        return self._tokenizer.decode(ids)

    async def save(self, slot: Slot, name: str) -> Copied:
        """See `Backend`."""
        return await self._copies.save(slot.index, name)

    async def restore(self, slot: Slot, name: str) -> float:
        """See `Backend`."""
        return await self._copies.restore(slot.index, name)

    def discard(self, name: str) -> None:
        """See `Backend`."""
        self._copies.discard(name)

    async def generate(self, request: CompletionRequest, slot: Slot) -> AsyncGenerator[BackendEvent]:
        """See `Backend`."""
        from rallychat.engines.hf_steps import Running

        adapter = self._adapters.number(request.model)
        ends = self._ends.union(request.stop_token_ids)
        answer = Running(request, slot.index, adapter=adapter, ends=ends, foreign=slot.foreign)
        reader = _Reader(self._tokenizer.stream())
        self._steps.submit(answer)
        try:
            while True:
                await answer.wake.wait()
                answer.wake.clear()
                for event in reader.read(answer.happened):
                    yield event
                    if isinstance(event, Done):
                        return
                if reader.spoke:  # the first token and the end never wait
                    self._loop.call_later(PACE, answer.listen)
                else:
                    answer.listen()
        finally:
            self._steps.cancel(answer)
            while not answer.released:  # the slot is free only when the engine has let go of it
                answer.happened.clear()  # nobody reads on: else it would be woken by that, over and over
                answer.listen()
                await answer.wake.wait()
                answer.wake.clear()


class _Reader:
    """What happened, as events: neighbouring tokens joined."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._count = 0
        self.spoke = False
        """The last reading brought text."""

    def read(self, happened: Any) -> list[BackendEvent]:
        """Everything that has happened. Raises what failed."""
        events: list[BackendEvent] = []
        tokens: list[int] = []
        self.spoke = False
        while happened:
            one = happened.popleft()
            if isinstance(one, int):
                tokens.append(one)
                continue
            events += self._steps(tokens)
            tokens = []
            if isinstance(one, EngineInterrupted):
                raise one
            if isinstance(one, Prefill) and events and isinstance(events[-1], Prefill):
                events.pop()
            events.append(one)
        return events + self._steps(tokens)

    def _steps(self, tokens: list[int]) -> list[BackendEvent]:
        if not tokens:
            return []
        text, ids = self._stream.feed(tokens)
        if not ids:
            return []
        self._count += len(ids)
        self.spoke = True
        return [Step(text, ids, self._count)]
