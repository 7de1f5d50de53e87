"""Who is read when: the step loop over a runner that only notes what it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests import transformers_world as transformers_world  # skips the module where torch is missing

from rallychat.engines.hf_decoder import Immovable, Work  # isort: skip
from rallychat.engines.hf_steps import Running, Steps  # isort: skip
from rallychat.engines.protocol import CompletionRequest  # isort: skip

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

CHUNK = 1024


class Noted(Immovable):
    """Has read what it is given; `meanwhile` happens during each step."""

    together, whole, rollback, extends = True, False, True, True

    def __init__(self) -> None:
        self.calls: list[dict[int, int]] = []
        """Of each step: how many tokens in which slot."""
        self.meanwhile: Callable[[], None] = lambda: None

    def begin(self, slot: int, prompt: list[int], adapter: int, said: int = 0) -> int:
        return 0

    def evaluate(self, work: Sequence[Work]) -> Any:
        import torch

        self.calls.append({one.slot: len(one.ids) for one in work})
        self.meanwhile()
        return torch.zeros(len(work), 8)

    def forget(self, slot: int) -> None:
        raise AssertionError("a step failed")


def asking(slot: int, tokens: int) -> Running:
    """An answer of one token, so that all steps are those of prompts."""
    request = CompletionRequest(prompt=[1] * tokens, max_tokens=1, temperature=0)
    return Running(request, slot, adapter=-1, ends=frozenset())


async def ended(*answers: Running) -> None:
    async with asyncio.timeout(60):
        for answer in answers:
            while not answer.released:
                answer.wake.clear()
                answer.happened.clear()
                answer.listen()
                await answer.wake.wait()


async def test_a_short_prompt_is_read_before_the_rest_of_a_long_one() -> None:
    runner, long, short = Noted(), asking(0, 5000), asking(1, 33)
    steps = Steps(runner, chunk=CHUNK, loop=asyncio.get_running_loop())

    def comes() -> None:
        if len(runner.calls) == 2:
            steps.submit(short)

    runner.meanwhile = comes
    steps.submit(long)
    await ended(long, short)
    assert runner.calls[2] == {1: 33}
    assert sum(call.get(0, 0) for call in runner.calls) == 5000


async def test_a_long_prompt_goes_on_among_ever_new_short_ones() -> None:
    runner, long = Noted(), asking(0, 5000)
    steps = Steps(runner, chunk=CHUNK, loop=asyncio.get_running_loop())
    others: list[Running] = []

    def comes() -> None:
        if not long.read and len(others) < 1000:
            others.append(asking(1 + len(others), 33))
            steps.submit(others[-1])

    runner.meanwhile = comes
    steps.submit(long)
    await ended(long)
    await ended(*others)
    parts = [number for number, call in enumerate(runner.calls) if 0 in call]
    assert all(later - one <= 4 for one, later in pairwise(parts))


async def test_prompts_of_like_lengths_are_read_in_one_step_and_none_is_cut() -> None:
    runner = Noted()
    steps = Steps(runner, chunk=CHUNK, loop=asyncio.get_running_loop())
    lengths = dict(enumerate((2000, 600, 40, 400, 100, 30, 20, 500)))
    first, *others = (asking(slot, tokens) for slot, tokens in lengths.items())

    def come() -> None:
        if len(runner.calls) == 1:
            for one in others:
                steps.submit(one)

    runner.meanwhile = come
    steps.submit(first)
    await ended(first, *others)
    assert runner.calls[1] == {slot: tokens for slot, tokens in lengths.items() if tokens <= 40}
    assert {400, 500} in [set(call.values()) for call in runner.calls]
    assert all(len(call) * max(call.values()) <= CHUNK for call in runner.calls)
    for slot in range(1, len(lengths)):
        assert [call[slot] for call in runner.calls if slot in call] == [lengths[slot]]
