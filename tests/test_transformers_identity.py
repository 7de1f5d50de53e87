"""What the Transformers engine answers is, token for token, what plain greedy `generate` answers."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from rallychat.engines.protocol import Done
from rallychat.engines.transformers import Transformers
from tests import checkpoints
from tests.transformers_world import Plain, answered, unread
from tests.transformers_world import opened as opened_world

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

KINDS = ("llama", "neox", "t5")


def opened(base: Path, **options: Any) -> Transformers:
    return unread(opened_world(base, **options))


def prompts(seed: int, *sizes: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(5, 100) for _ in range(size)] for size in sizes]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = getattr(checkpoints, kind)(tmp_path_factory.mktemp(kind))
    return made


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.lora(base, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module", params=["plain", "lora"])
def worn(request: pytest.FixtureRequest, adapter: Path) -> Path | None:
    """The adapter that is merged, or none."""
    return adapter if request.param == "lora" else None


@pytest.fixture(scope="module")
def plain(base: Path, worn: Path | None) -> Plain:
    return Plain(base, worn)


async def test_alone_and_among_others_of_other_lengths(base: Path, worn: Path | None, plain: Plain) -> None:
    backend = opened(base, adapters={"it": worn} if worn else None, prefill=32)
    asked = prompts(1, 3, 40, 17, 90)
    expected = [plain.answer(prompt) for prompt in asked]
    assert [(await answered(backend, prompt))[0] for prompt in asked] == expected
    together = await asyncio.gather(*(answered(backend, prompt, slot) for slot, prompt in enumerate(asked)))
    assert [ids for ids, _ in together] == expected
    assert len({tuple(ids) for ids in expected}) == len(asked)


async def test_after_a_prefix_was_reused(kind: str, base: Path, worn: Path | None, plain: Plain) -> None:
    backend = opened(base, adapters={"it": worn} if worn else None, prefill=32)
    assert backend.info.extends is (kind != "t5")
    (first, more, other) = prompts(2, 50, 9, 12)
    ids, _ = await answered(backend, first, 2)
    turns = [first + ids + more, first[:30] + other, first[:30] + other]
    for n, (turn, cached) in enumerate(zip(turns, (len(first) + len(ids) - 1, 30, 41), strict=True)):
        ids, done = await answered(backend, turn, 2)
        assert ids == plain.answer(turn)
        # An encoder reads a prompt as a whole: nothing of another one can be reused.
        assert done.cached_tokens == (cached if kind != "t5" or n == 2 else 0)


async def test_an_answer_that_goes_on_ends_as_if_it_had_never_been_left(
    base: Path, worn: Path | None, plain: Plain
) -> None:
    backend = opened(base, adapters={"it": worn} if worn else None, prefill=32)
    prompt, *others = prompts(6, 30, 12, 44)
    expected = plain.answer(prompt)
    at = len(expected) // 2
    assert at

    async def rest(slot: int) -> tuple[list[int], Done]:
        return await answered(backend, prompt + expected[:at], slot, said=at, max_tokens=20 - at)

    assert (await rest(0))[0] == expected[at:]
    await answered(backend, prompt, 1)
    ids, done = await rest(1)
    assert ids == expected[at:]
    assert done.cached_tokens >= len(prompt)
    beside = (answered(backend, other, 2 + n) for n, other in enumerate(others))
    (ids, _), *found = await asyncio.gather(rest(0), *beside)
    assert ids == expected[at:]
    assert [each for each, _ in found] == [plain.answer(other) for other in others]


async def test_while_others_come_and_go(base: Path, plain: Plain, worn: Path | None) -> None:
    backend = opened(base, adapters={"it": worn} if worn else None, slots=3, prefill=32)
    asked = prompts(3, 30, 4, 60, 8, 21, 45, 70, 2, 33)
    lengths = [5, 25, 9, 14, 3, 30, 1, 18, 11]
    free: asyncio.Queue[int] = asyncio.Queue()
    for slot in range(3):
        free.put_nowait(slot)

    async def one(prompt: list[int], length: int) -> list[int]:
        slot = await free.get()
        ids, _ = await answered(backend, prompt, slot, max_tokens=length)
        free.put_nowait(slot)
        return ids

    found = await asyncio.gather(*map(one, asked, lengths))
    assert found == [plain.answer(prompt, length) for prompt, length in zip(asked, lengths, strict=True)]


async def test_each_answer_wears_the_adapter_it_asked_for(base: Path, tmp_path: Path) -> None:
    worn = {
        name: checkpoints.lora(base, tmp_path / name, seed=n, rank=2 + n) for n, name in enumerate("ab", 5)
    }
    backend = opened(base, adapters=worn)
    (prompt,) = prompts(4, 25)
    names = ["a", "nobody", "b", ""]
    expected = {name: Plain(base, worn.get(name)).answer(prompt) for name in names}
    together = await asyncio.gather(
        *(answered(backend, prompt, n, model=name) for n, name in enumerate(names))
    )
    assert [ids for ids, _ in together] == [expected[name] for name in names]
    assert expected["a"] != expected["b"] != expected[""]


async def test_a_slot_never_mixes_what_two_adapters_evaluated(base: Path, tmp_path: Path) -> None:
    worn = {name: checkpoints.lora(base, tmp_path / name, seed=n) for n, name in enumerate("ab", 5)}
    backend = opened(base, adapters=worn)
    (prompt,) = prompts(5, 40)
    for name in ("a", "b", "", "a"):
        ids, done = await answered(backend, prompt, 0, model=name)
        assert ids == Plain(base, worn.get(name)).answer(prompt)
        assert done.cached_tokens == 0
    _, done = await answered(backend, prompt, 0, model="a")
    assert done.cached_tokens == len(prompt) - 1
