"""`rallychat bench serve`: who is compared with whom."""

from __future__ import annotations

from collections.abc import Sequence

from rallychat.bench.arms import Prompt, Round
from rallychat.bench.serve import _compare


class Noisy:
    """Answers more slowly each round; remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Sequence[Prompt]] = []

    async def answer(self, prompts: Sequence[Prompt], max_tokens: int) -> Round:
        self.asked.append(prompts)
        return Round(8, 1.0 * len(self.asked), (0.1 * len(self.asked),))


async def test_the_way_of_2023_is_compared_with_the_raw_engine_s_round_of_the_same_prompts() -> None:
    raw, ours, old = Noisy("raw engine"), Noisy("rallychat"), Noisy("2023 threads")
    prompts = [Prompt([{"role": "user", "content": str(number)}], [number]) for number in range(3)]
    rows = await _compare(1, [raw, ours], old, iter(prompts), rounds=3, max_tokens=8)
    assert raw.asked == ours.asked == [[prompt] for prompt in prompts]
    assert old.asked == raw.asked[:1]
    (row,) = (row for row in rows if row["arm"] == old.name)
    assert (row["of_raw"], row["added_first_ms"]) == (1, 0)
