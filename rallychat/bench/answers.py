"""`rallychat bench answers`: facts told early, asked late. What the prompt still holds, and what the model makes of it.

The two are told apart: a small model misses facts that stand right in front of it, which the row without a turn in
between shows; what a context loses is the difference to that row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rallychat.bench.folders import apart
from rallychat.bench.talk import questions
from rallychat.catalog import Sampling
from rallychat.chat import ChatService
from rallychat.messages import Finished, Message
from rallychat.settings import Settings

FACTS = (
    ("My sister's name is Marguerite.", "What is my sister's name?", "Marguerite"),
    ("I work as a beekeeper.", "What do I work as?", "beekeeper"),
    ("My dog is called Biscuit.", "What is my dog called?", "Biscuit"),
    ("I was born in Ljubljana.", "Where was I born?", "Ljubljana"),
    ("My favourite colour is turquoise.", "What is my favourite colour?", "turquoise"),
    ("I am allergic to walnuts.", "What am I allergic to?", "walnut"),
    ("My train leaves at 17:42.", "When does my train leave?", "17:42"),
    ("I play the bassoon in an orchestra.", "Which instrument do I play?", "bassoon"),
    ("My neighbour is called Mr Okonkwo.", "What is my neighbour called?", "Okonkwo"),
    ("I drive an old Saab.", "Which car do I drive?", "Saab"),
)
STRATEGIES = ("last_n", "ledger", "hybrid")


async def run_answers(
    settings: Settings, *, fillers: Sequence[int] = (0, 10, 50), tell: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """One row per strategy and number of turns between fact and question.

    Columns: `in_prompt` and `answered`, shares of the facts; `prompt_tokens` on average.

    Args:
        tell: hears each row as it is there.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        async with ChatService.open(apart(settings, Path(made))) as service:
            for between in fillers:
                for strategy in STRATEGIES:
                    rows.append(await _row(service, strategy, between))
                    tell(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    return rows


async def _row(service: ChatService, strategy: str, between: int) -> dict[str, Any]:
    held = answered = tokens = 0
    for number, (fact, question, word) in enumerate(FACTS):
        chat = (await service.store.create()).id
        await service.contexts.set_strategy(chat, strategy)
        told = [Message.of("user", fact), Message.of("assistant", "Thank you, I will remember that.")]
        for text in islice(questions(None), number, number + between):
            told += [Message.of("user", text), Message.of("assistant", "That depends on what you like best.")]
        first = (await service.store.items.append(chat, told))[0]
        run = await service.turn(chat, question, sampling=Sampling(temperature=0.0, max_tokens=48))
        end = await run.wait()
        service.idle.leave(chat)
        report = (await service.store.path(chat))[-1].report
        there = report is not None and (first.id in {*report.kept, *report.compacted, *report.retrieved})
        held += there
        answered += word.lower() in run.text.lower()
        tokens += end.usage.prompt_tokens if isinstance(end, Finished) else 0
    return {
        "strategy": strategy,
        "turns_between": between,
        "in_prompt": round(held / len(FACTS), 2),
        "answered": round(answered / len(FACTS), 2),
        "prompt_tokens": round(tokens / len(FACTS)),
    }
