"""What holds for every conversation, strategy and template: nothing leaves unreported, and prefixes stay."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.catalog import Catalog, Family
from rallychat.catalog.types import ReasoningTags
from rallychat.context.memory import cut
from rallychat.context.selection import exchanges
from rallychat.context.strategies import names, strategy_named
from rallychat.errors import ContextOverflow
from rallychat.messages import Message
from rallychat.planning import Plan
from rallychat.prompts import PromptTemplate
from rallychat.settings import Settings
from rallychat.templates import of_family
from rallychat.turns import turns_of
from tests.context_world import CHATML, Talk

STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
REWRITING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKS = ReasoningTags(open="<think>", close="</think>")
TEMPLATES = {"chatml": CHATML, "strict": STRICT, "rewriting": REWRITING}

step = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 60)),
    st.tuples(st.just("regenerate"), st.just(0)),
    st.tuples(st.just("edit"), st.integers(0, 30)),
    st.tuples(st.just("pin"), st.integers(0, 30)),
    st.tuples(st.just("exclude"), st.integers(0, 30)),
    st.tuples(st.just("compact"), st.just(0)),
)


def word(talk: Talk) -> str:
    return f"w{talk.count + 1}"


def holds(talk: Talk, plan: Plan, path_ids: list[str]) -> None:
    """Every promise about one prompt."""
    report = plan.report
    parts = [*report.kept, *report.compacted, *report.dropped, *report.excluded]
    assert sorted(parts) == sorted(path_ids), "each message is in exactly one group"
    rows = {row.id: row for row in talk.path}
    marks = {row.id: row.mark for row in talk.path}
    assert all(marks[m] != "exclude" for m in report.kept)
    assert all(m in report.kept for m in path_ids if marks[m] == "pin")
    assert set(report.retrieved) <= {*report.compacted, *report.dropped}
    shown = set(re.findall(r"\w+", talk.tokens.text(plan.ids)))
    for m in path_ids:
        said = rows[m].text.split()[0]
        if m in report.excluded:
            assert said not in shown, "an excluded message is nowhere in the prompt"
        if m in report.kept or m in report.retrieved:
            assert said in shown
    assert sum(segment.tokens for segment in report.segments) == report.prompt_tokens == len(plan.ids)


async def play(
    strategy: str,
    template: PromptTemplate,
    steps: list[tuple[str, int]],
    *,
    system: str,
    tags: ReasoningTags | None = None,
) -> None:
    talk = Talk(strategy_named(strategy), template, system=system)
    rewrites = template.rewrites_history
    apart = template.render(
        [Message.of("user", "a"), Message.of("assistant", "b"), Message.of("user", "c")]
    ).segmented
    calm = False
    """Nothing but saying more has happened since the last prompt."""
    before: list[int] = []
    said: list[int] = []
    quoted: tuple[str, ...] = ()
    for what, number in steps:
        try:
            if what == "say":
                talk.add("user", f"{word(talk)} q" + " x" * number)
            elif what == "regenerate" and talk.path:
                talk.path.pop()
            elif what == "edit" and talk.path:
                at = 2 * (number % (len(talk.path) // 2))
                talk.path[at:] = []
                talk.add("user", f"{word(talk)} edited")
                calm = False
            elif what in ("pin", "exclude") and len(talk.path) > 2:
                at = number % len(talk.path)
                talk.mark(at, None if talk.path[at].mark else "pin" if what == "pin" else "exclude")
                calm = False
                continue
            elif what == "compact" and talk.path:
                found = talk.strategy.compact(
                    turns_of(talk.path), talk.memories[-1] if talk.memories else None, talk.limits
                )
                if found is not None:
                    talk.memories.append(found.rules)
                    calm = False
                continue
            else:
                continue
            if talk.path[-1].mark == "exclude":
                talk.mark(-1, None)
            ids = [row.id for row in talk.path]
            thought = f"{tags.open}hm hm{tags.close}" if rewrites and tags else ""
            plan = await talk.answer(f"{word(talk)} answer y y y", thought=thought)
        except ContextOverflow:
            assert any(row.mark == "pin" for row in talk.path), "only pins can be too much"
            talk.path = talk.path[:-1] if talk.path[-1].role == "user" else talk.path
            calm = False
            continue
        holds(talk, plan, ids)
        # A template that does not show where a message begins keeps no log of what was quoted beside one.
        if calm and plan.fresh is None and strategy != "last_n" and (apart or not quoted):
            expected = before if what == "regenerate" else [*before, *said]
            assert plan.ids[: len(expected)] == expected, "the prompt goes on where the one before ended"
            assert plan.report.diverged_at is None
        spans = {row.id: row.span for row in talk.path}
        assert not apart or all(spans[m] is not None for m in plan.report.kept), (
            "what was evaluated is never tokenised again"
        )
        span = talk.path[-1].span
        quoted = plan.report.retrieved
        before, said = plan.ids, [] if rewrites or span is None else list(span.ids)
        calm = True


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("strategy", [name for name in names() if name.islower()])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(step, min_size=4, max_size=30))
def test_nothing_leaves_unreported_and_prefixes_stay(
    strategy: str, template: str, steps: list[tuple[str, int]]
) -> None:
    tags = THINKS if template == "rewriting" else None
    made = PromptTemplate(TEMPLATES[template], reasoning=tags)
    assert made.rewrites_history == (tags is not None)
    asyncio.run(play(strategy, made, steps, system="" if template == "strict" else "Be brief.", tags=tags))


CATALOG = Catalog.load(Settings(data_dir=Path("/nowhere")))
FAMILIES = {family.id: family for family in CATALOG.families.values() if family.template}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(strategy=st.sampled_from(["full", "ledger", "hybrid"]), steps=st.lists(step, min_size=10, max_size=24))
def test_every_shipped_format_keeps_its_prefix(
    family: Family, strategy: str, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(play(strategy, of_family(family), steps, system=family.default_system, tags=family.reasoning))


async def test_what_is_excluded_leaves_the_quotes_beside_later_messages_too() -> None:
    talk = Talk(strategy_named("hybrid"))
    await talk.turn("My platypus is called Cornelius.", "Fine.")
    talk.memories.append(cut(exchanges(turns_of(talk.path)), "it left"))
    plan = await talk.turn("What is my platypus called?", "Cornelius.")
    assert "m1" in plan.report.retrieved
    talk.path.pop()  # the same question is asked again, and one more after it
    talk.mark(0, "exclude")
    again = await talk.answer("No idea.")
    later = await talk.turn("And now?", "No idea.")
    for plan in (again, later):
        assert "Cornelius" not in talk.tokens.text(plan.ids)
        assert "m1" in plan.report.excluded
