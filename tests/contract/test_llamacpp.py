"""What llama.cpp in particular does: its sampling is the one asked for, and its surprising defaults are off."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.protocol import WorkerSpec
from tests.contract.rig import SLOTS, Rig, real_spec, rig_of

pytestmark = pytest.mark.real
DRAWS = 240


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path) -> Iterator[Rig]:
    with rig_of(real_spec(smollm2_gguf)) as rig:
        yield rig


async def drawn(rig: Rig, draws: int = 60, **sampling: Any) -> Counter[int]:
    """How often each token came first, over many seeds."""
    prompt = await rig.chat("Name a random animal. The")
    found: Counter[int] = Counter()

    async def draw(slot: int) -> None:
        for seed in range(slot, draws, SLOTS):
            options = {"max_tokens": 1, "ignore_eos": True, "temperature": 1.0, "seed": seed, "slot": slot}
            answer = await rig.answer(prompt, **(options | sampling))
            found[answer.ids[0] if answer.ids else -1] += 1

    await asyncio.gather(*(draw(slot) for slot in range(SLOTS)))
    return found


def shares(found: Counter[int]) -> dict[int, float]:
    return {token: count / found.total() for token, count in found.items()}


async def test_temperature_sharpens_the_distribution_as_its_definition_says(llama: Rig) -> None:
    warm, cold = (
        shares(await drawn(llama, DRAWS, top_k=2)),
        shares(await drawn(llama, DRAWS, top_k=2, temperature=0.5)),
    )
    (best, p), (second, q) = sorted(warm.items(), key=lambda item: -item[1])
    expected = p * p / (p * p + q * q)
    # Three standard errors of the two estimates.
    tolerance = 3 * math.sqrt(0.25 / DRAWS) * 2
    assert set(cold) <= {best, second}
    assert abs(cold[best] - expected) < tolerance


async def test_top_k_one_is_greedy(llama: Rig) -> None:
    greedy = (
        await llama.answer(await llama.chat("Name a random animal. The"), max_tokens=1, ignore_eos=True)
    ).ids
    assert set(await drawn(llama, top_k=1, temperature=1.5)) == set(greedy)


async def test_top_k_top_p_and_min_p_each_bound_what_can_come(llama: Rig) -> None:
    free = await drawn(llama)
    assert len(free) > 10
    assert len(await drawn(llama, top_k=3)) <= 3
    assert len(await drawn(llama, top_p=0.1)) < len(free) / 2
    assert len(await drawn(llama, min_p=0.5)) < len(free) / 2
    assert len(await drawn(llama, temperature=0.1)) < len(free) / 2


async def test_seeds_differ_and_no_seed_differs_each_time(llama: Rig) -> None:
    prompt = await llama.chat("Invent a name for a ship.")
    options = {"temperature": 1.5, "slot": 0, "ignore_eos": True}
    assert len({tuple((await llama.answer(prompt, seed=seed, **options)).ids) for seed in range(3)}) == 3
    assert len({tuple((await llama.answer(prompt, **options)).ids) for _ in range(3)}) == 3


async def test_repetition_penalty_keeps_what_the_prompt_said_from_coming_again(llama: Rig) -> None:
    prompt = await llama.text("one two three one two three one two three one two three one two")
    free = await llama.answer(prompt, max_tokens=9, ignore_eos=True)
    held = await llama.answer(prompt, max_tokens=9, ignore_eos=True, repetition_penalty=2.0)
    assert set(free.ids) <= set(prompt)
    assert not set(held.ids) & set(prompt)


async def test_an_answer_by_the_models_own_end_says_stop(llama: Rig) -> None:
    answer = await llama.answer(
        await llama.chat("What is two plus two? Answer with one number."), max_tokens=200
    )
    assert answer.done.reason == "stop"
    assert "<|im_end|>" not in answer.text


async def test_what_llama_cpp_prints_is_nothing_while_all_is_well(llama: Rig) -> None:
    await llama.answer(await llama.chat("Hello"))
    assert llama.worker.last_words == ""


async def test_a_window_larger_than_the_models_own_is_cut_to_it(smollm2_gguf: Path) -> None:
    spec = WorkerSpec("llamacpp", "m", path=str(smollm2_gguf), slots=1, window=100_000)
    with rig_of(spec) as rig:
        assert rig.info.window == 8192


async def test_what_the_weights_say_of_themselves_is_in_info(llama: Rig) -> None:
    info = llama.info
    assert (info.engine, info.slots, info.slot_affinity, info.rollback) == ("llamacpp", SLOTS, True, True)
    assert (info.bos_token, info.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>" in (info.chat_template or "")
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(info.control_tokens)
