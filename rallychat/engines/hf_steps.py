"""The engine's thread: in each round one step of prompts being read and one of answers being written.

No step waits for another answer: a prompt is read in bounded parts, in turns, short ones first, and everybody who
writes gets a token in between. Who has left is heard of before the next step.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

import torch

from rallychat.engines.hf_decoder import Runner, Work
from rallychat.engines.hf_sampling import Wish, choose
from rallychat.engines.protocol import CompletionRequest, Done, Prefill
from rallychat.errors import EngineInterrupted

log = logging.getLogger(__name__)

Happening = Prefill | int | Done | EngineInterrupted
"""Progress, a token, the end, or a failure."""

_T = TypeVar("_T")
_NOBODY: Final = -2
"""The number of no adapter."""


class Running:
    """One answer, shared by the engine's thread and the loop. Appending and popping are atomic."""

    def __init__(
        self,
        request: CompletionRequest,
        slot: int,
        *,
        adapter: int,
        ends: frozenset[int],
        foreign: bool = False,
    ) -> None:
        self.request = request
        self.slot = slot
        self.adapter = adapter
        self.foreign = foreign
        """What the slot holds is not this answer's to reuse."""
        self.ends = ends
        self.wish = Wish.of(request, ends)
        self.happened: deque[Happening] = deque()
        self.wake = asyncio.Event()
        self.listening = True
        """The loop wants to be woken by what happens next."""
        self.cancelled = False
        self.released = False
        """The engine has let go of the slot."""
        self.pending: Sequence[int] = ()
        """Tokens still to be evaluated; once the prompt is read, one at a time."""
        self.cached = 0
        self.read = False
        self.count = 0

    def listen(self) -> None:
        """Be woken by what happens next; what has happened meanwhile wakes at once."""
        self.listening = True
        if self.happened or self.released:
            self.wake.set()


class Steps:
    """Runs answers. `submit` and `cancel` are for the loop's thread."""

    def __init__(self, runner: Runner, *, chunk: int, loop: asyncio.AbstractEventLoop) -> None:
        self._runner = runner
        self._chunk = chunk
        self._loop = loop
        self._new: deque[Running] = deque()
        self._running: list[Running] = []
        self._passed = False
        """The first of those who read was not in the last step."""
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._work = threading.Event()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, answer: Running) -> None:
        """Begin an answer; its slot must be free."""
        self._new.append(answer)
        self._work.set()

    def cancel(self, answer: Running) -> None:
        """Let go of an answer before the next step."""
        answer.cancelled = True
        self._work.set()

    async def between(self, errand: Callable[[], _T]) -> _T:
        """Does something with the runner between two steps, on its thread; what it returns or raises."""
        future: Future[_T] = Future()
        self._errands.append((errand, future))
        self._work.set()
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        with torch.inference_mode():
            self._rounds()

    def _rounds(self) -> None:
        while True:
            if not self._running and not self._new and not self._errands:
                self._work.wait()
            self._work.clear()
            while self._errands:
                _done(*self._errands.popleft())
            touched: list[Running] = []
            self._admit(touched)
            self._round(touched)
            self._tell(touched)

    def _tell(self, touched: list[Running]) -> None:
        """Wakes the loop, once, for all these answers."""
        waking = [one for one in touched if one.listening or one.released]
        for one in waking:
            one.listening = False
        if waking:
            self._loop.call_soon_threadsafe(_wake, waking)
        touched.clear()

    def _admit(self, touched: list[Running]) -> None:
        while self._new:
            answer = self._new.popleft()
            self._running.append(answer)
            if not answer.cancelled:
                self._guarded([answer], touched, partial(self._begin, answer))
        for answer in [one for one in self._running if one.cancelled]:
            self._release(answer, touched)

    def _begin(self, answer: Running) -> None:
        prompt = answer.request.prompt
        if answer.foreign:
            self._runner.begin(
                answer.slot, prompt, _NOBODY
            )  # what is held under it, no adapter has in common
        answer.cached = self._runner.begin(answer.slot, prompt, answer.adapter, answer.request.said)
        answer.pending = prompt[answer.cached :]

    def _round(self, touched: list[Running]) -> None:
        reading = [one for one in self._running if not one.read]
        writing = [one for one in self._running if one.read]
        if reading:
            group = self._together(reading)
            self._guarded(group, touched, lambda: self._read(group, touched))
        if writing:
            self._tell(touched)  # a first token does not wait for those of others
            self._guarded(writing, touched, lambda: self._write(writing, touched))

    def _together(self, reading: list[Running]) -> list[Running]:
        """Whose prompts are read in this step: a part of one, or several whole that cost no more than a step may.

        The shortest comes first; but where the first in the list was passed over, the next step is its own, so a long
        prompt goes on among ever new short ones. Others join with a like length, for what is shorter is padded.
        """
        ordered = sorted(reading, key=lambda one: len(one.pending))
        group = [reading[0] if self._passed else ordered[0]]
        size = len(group[0].pending)
        for one in ordered if self._runner.together else ():
            length = len(one.pending)
            if one is group[0] or not size <= 2 * length <= 4 * size:
                continue
            if max(size, length) * (len(group) + 1) > self._chunk:
                break
            group.append(one)
        self._passed = reading[0] not in group
        return group

    def _read(self, group: list[Running], touched: list[Running]) -> None:
        parts = [one.pending if self._runner.whole else one.pending[: self._chunk] for one in group]
        logits = self._runner.evaluate([Work(one.slot, part) for one, part in zip(group, parts, strict=True)])
        ready: list[tuple[int, Running]] = []
        for row, (one, part) in enumerate(zip(group, parts, strict=True)):
            one.pending = one.pending[len(part) :]
            total = len(one.request.prompt)
            one.happened.append(Prefill(total, one.cached, total - len(one.pending)))
            if not one.pending:
                one.read = True
                ready.append((row, one))
            else:  # the others' turn
                self._running.remove(one)
                self._running.append(one)
        touched += group
        self._say(ready, logits, touched)

    def _write(self, writing: list[Running], touched: list[Running]) -> None:
        logits = self._runner.evaluate([Work(one.slot, one.pending) for one in writing])
        touched += writing
        self._say(list(enumerate(writing)), logits, touched)

    def _say(self, ready: list[tuple[int, Running]], logits: Any, touched: list[Running]) -> None:
        """Choose the next token of these rows; end the answers that end with it."""
        warmed = [one for _, one in ready if one.request.max_tokens == 0]
        for one in warmed:
            self._end(one, "length", touched)
        ready = [(row, one) for row, one in ready if one.request.max_tokens > 0]
        if not ready:
            return
        rows = [row for row, _ in ready]
        chosen = choose(logits if len(rows) == len(logits) else logits[rows], [one.wish for _, one in ready])
        for (_, one), token in zip(ready, chosen, strict=True):
            one.count += 1
            one.pending = (token,)
            if token in one.ends and not one.request.ignore_eos:
                self._end(one, "stop", touched)
                continue
            one.happened.append(token)
            if one.count >= one.request.max_tokens:
                self._end(one, "length", touched)

    def _end(self, answer: Running, reason: Any, touched: list[Running]) -> None:
        answer.happened.append(Done(reason, len(answer.request.prompt), answer.count, answer.cached))
        self._release(answer, touched)

    def _release(self, answer: Running, touched: list[Running]) -> None:
        self._running.remove(answer)
        answer.released = True
        touched.append(answer)

    def _guarded(self, group: list[Running], touched: list[Running], step: Callable[[], None]) -> None:
        """A step that fails ends the answers in it, and nobody else's, unless it took the device along."""
        try:
            step()
        except Exception as exc:
            _end_where_the_device_is_lost()
            for one in group:
                self._runner.forget(one.slot)
                if not one.released:
                    error = EngineInterrupted(f"Transformers failed: {type(exc).__name__}: {exc}")
                    error.__cause__ = exc
                    one.happened.append(error)
                    self._release(one, touched)


def _end_where_the_device_is_lost() -> None:
    """After some errors, an illegal access say, nothing runs on a GPU any more in this process: another has to."""
    if not torch.cuda.is_initialized():
        return
    try:
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_allocated(device):
                torch.cuda.synchronize(device)
    except RuntimeError as exc:
        log.critical("the GPU is lost to this process, which ends: %s", exc)
        sys.stderr.flush()
        os._exit(1)


def _done(errand: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(errand())
    except Exception as exc:
        future.set_exception(exc)


def _wake(answers: Sequence[Running]) -> None:
    for one in answers:
        one.wake.set()
