"""A memory that takes more tokens than was reckoned with leaves by halves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rallychat.context import memory as memories
from rallychat.context.selection import exchanges
from rallychat.context.strategies import MADE_ROOM, strategy_named
from rallychat.context.types import Budget, Memory, Turn
from rallychat.errors import ContextOverflow
from rallychat.prompts import PromptTemplate
from tests.context_world import CHATML, Talk, WordTokens


class DenseTokens(WordTokens):
    """In lines that quote, as those of ledgers do, each character is several tokens."""

    def ids(self, text: str) -> list[int]:
        found: list[int] = []
        for line in text.splitlines(keepends=True):
            if "User: " in line or "You: " in line:
                letters = [f"{letter}{n}" for letter in line for n in range(12)]
                found += [self.known.setdefault(letter, len(self.known)) for letter in letters]
            else:
                found += super().ids(line)
        return found


COUNTING = "{{ messages | length }}|{% for m in messages %}{{ m.content }}\n{% endfor %}"
"""Its message boundaries cannot be known."""


@pytest.mark.parametrize("template", [CHATML, COUNTING])
async def test_a_memory_of_more_tokens_than_was_reckoned_with_leaves_by_halves_and_is_told(
    template: str,
) -> None:
    talk = Talk(strategy_named("ledger"), PromptTemplate(template), tokens=DenseTokens())
    plans = [await talk.turn(f"filler filler filler t{n} now", "ok " * 5) for n in range(60)]
    halved = [plan for plan in plans if plan.fresh and plan.fresh.why == memories.TOO_LONG]
    assert halved
    for plan in halved:
        assert plan.fresh is not None
        assert plan.report.why == plan.report.divergence == memories.TOO_LONG
        assert plan.report.compacted == plan.fresh.covers
        said = {f"m{2 * n + 1}": f" t{n} now" for n in range(60)}
        held = {name for name, words in said.items() if words in plan.fresh.text}
        assert held == set(plan.fresh.covers) & set(said), "what it is said to cover stands in it"
    for n, plan in enumerate(plans):
        told = {*plan.report.dropped, *plan.report.compacted, *plan.report.kept}
        assert told == {row.id for row in talk.path[: 2 * n + 1]}
    after = plans[plans.index(halved[0]) + 1]
    version = [memory.why for memory in talk.memories].index(memories.TOO_LONG) + 1
    assert (after.fresh, after.report.memory) == (None, version), "what was halved stays the memory"


async def test_a_memory_of_its_share_stays_where_something_else_is_too_long() -> None:
    talk = Talk(strategy_named("ledger"))
    for n in range(14):
        await talk.turn(f"t{n} filler filler", "ok " * 5)
    plan = await talk.turn("filler " * 210, "ok")
    assert talk.limits.limit < len(plan.ids) < talk.window
    assert plan.report.compacted
    assert plan.report.why == MADE_ROOM


@pytest.mark.parametrize(
    ("answer", "memory", "question", "left"),
    [
        pytest.param(150, "a word " * 20, 180, "a word " * 20, id="a little more than its share"),
        pytest.param(150, "!" * 190, 170, "!" * 95, id="far more"),
        pytest.param(
            10, "a word; " * 24, 239, "a word; " * 12, id="a little more, and no room for an answer"
        ),
    ],
)
async def test_of_a_memory_of_a_little_more_than_its_share_nothing_leaves_while_there_is_room_for_an_answer(
    answer: int, memory: str, question: int, left: str
) -> None:
    talk = Talk(strategy_named("ledger"), budget=Budget(window=600, answer=answer))
    await talk.turn("filler " * 20, "ok")
    talk.memories = [Memory("ledger", memory.strip(), "m2", ("m1", "m2"), version=1)]
    plan = await talk.turn("filler " * question, "ok")
    assert len(plan.ids) < talk.window
    assert talk.memories[-1].text == left.strip()
    assert plan.report.compacted == ("m1", "m2")
    assert plan.report.why == (memories.TOO_LONG if plan.fresh else "")


async def test_what_a_person_wrote_into_a_memory_never_leaves_by_itself() -> None:
    talk = Talk(strategy_named("ledger"), tokens=DenseTokens())
    for n in range(3):
        await talk.turn(f"t{n}", "ok")
    talk.memories = [Memory("ledger", "User: " + "filler " * 30, "m2", ("m1", "m2"), "user", version=1)]
    talk.add("user", "now")
    with pytest.raises(ContextOverflow) as caught:
        await talk.plan()
    assert caught.value.hint.startswith("shorten the memory")
    talk.memories = [replace(talk.memories[0], edited_by="model")]
    assert (await talk.plan()).report.why == memories.TOO_LONG


def test_a_memory_leaves_line_by_line_then_by_characters_until_nothing_is_left() -> None:
    talk = [
        Turn("a", "user", "I like tea.\nAnd rain.", 5),
        Turn("b", "assistant", "Good! Why?", 9),
        Turn("c", "user", "Just so.", 4),
    ]
    made = replace(memories.ledger(exchanges(talk), None, room=100, why=""), version=7)
    steps = [made]
    while steps[-1].text:
        steps.append(memories.halved(steps[-1], talk))
    assert [(step.text, step.covers) for step in steps[:4]] == [
        ("User: I like tea.\nAnd rain.\nYou: Good!\nUser: Just so.", ("a", "b", "c")),
        ("You: Good!\nUser: Just so.", ("b", "c")),
        ("User: Just so.", ("c",)),
        ("ust so.", ("c",)),
    ]
    assert steps[-1] == Memory("cut", "", "c", (), "rules", memories.TOO_LONG)
    assert {step.version for step in steps[1:]} == {0}


def test_half_of_a_model_s_memory_is_not_used_once_any_of_its_messages_is_excluded() -> None:
    talk = [Turn(f"m{n}", ("user", "assistant")[n % 2], f"word{n}", 2) for n in range(6)]
    written = Memory("summary", "They like tea.\nThey live in Graz.", "m3", ("m0", "m1", "m2", "m3"), "model")
    half = memories.halved(written, talk)
    assert (half.text, half.covers, half.edited_by) == ("They live in Graz.", written.covers, "model")
    barred = [replace(turn, excluded=turn.id == "m0") for turn in talk]
    assert strategy_named("summary").select(barred, half, Budget(window=4000, answer=0)).memory is None
