"""Strategies, memories and quotes, each on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rallychat.context import memory as memories
from rallychat.context.index import Hit
from rallychat.context.retrieval import Found, block, days_in, quotes, scores, wanted
from rallychat.context.selection import exchanges, tokens_of_text
from rallychat.context.strategies import LastN, Remembering, names, register_strategy, strategy_named
from rallychat.context.types import Budget, Memory, Refused, Selection, Turn, answer_reserve
from rallychat.errors import ContextOverflow, InvalidRequest
from rallychat.prompts import PromptTemplate
from rallychat.store import TokenSpan
from rallychat.turns import turns_of
from tests.context_world import CHATML, DAY, Talk


def turns(count: int, *, tokens: int = 100) -> list[Turn]:
    """`count` exchanges; each message has `tokens` tokens and as many characters."""
    return [
        Turn(f"m{n}", "user" if n % 2 == 0 else "assistant", f"word{n}. ".ljust(tokens, "x"), tokens, DAY)
        for n in range(2 * count)
    ]


BUDGET = Budget(window=4000, answer=0)


def test_marks_are_shares_of_what_the_window_leaves() -> None:
    budget = Budget(window=8192, answer=1024, safety=81, fixed=87)
    assert (budget.limit, budget.mark, budget.usable, budget.high) == (7087, 5102, 7000, 5015)
    assert 0.25 <= budget.low / budget.high <= 0.35
    assert "window of 8,192" in budget.why


def test_a_slow_machine_lowers_the_high_mark_and_says_so() -> None:
    budget = Budget(window=8192, answer=1024, latency=1000, latency_why="1.2x at 1000 tokens")
    assert (budget.mark, budget.why) == (1000, "1.2x at 1000 tokens")
    assert Budget(window=1024, answer=256, latency=9000, latency_why="fast").why != "fast"
    assert budget.low == 200


def test_room_is_made_as_much_earlier_as_the_prompt_grows_meanwhile() -> None:
    ledger = strategy_named("ledger")
    assert ledger.compact(turns(14), None, BUDGET) is None
    found = ledger.compact(turns(14), None, replace(BUDGET, lead=100))
    assert found is not None
    assert found.why == found.rules.why
    assert found.why.startswith("the prompt was about to pass 2,880 tokens (")
    later = ledger.compact(turns(15), None, replace(BUDGET, lead=100))
    assert later is not None
    assert later.why.startswith("the prompt passed 2,880 tokens (")
    assert ledger.compact(turns(13), None, replace(BUDGET, lead=100)) is None


def test_a_budget_that_is_asked_for_bounds_the_prompt() -> None:
    budget = Budget(window=8192, answer=1024, asked=500)
    assert (budget.limit, budget.why) == (500, "a budget of 500 tokens was asked for")


def test_nothing_is_compacted_below_the_high_mark_and_down_to_the_low_mark_above_it() -> None:
    ledger = strategy_named("ledger")
    assert ledger.compact(turns(14), None, BUDGET) is None
    talk = turns(15)
    found = ledger.compact(talk, None, BUDGET)
    assert found is not None
    after = ledger.select(talk, found.rules, BUDGET)
    assert len(after.kept) * 100 <= BUDGET.low
    assert after.kept[-1] == "m29"
    assert {*after.kept, *after.compacted, *after.dropped} == {turn.id for turn in talk}


def test_a_ledger_keeps_the_user_s_words_and_the_first_sentence_of_answers() -> None:
    talk = [
        Turn("a", "user", "I like tea.", 5, DAY),
        Turn("b", "assistant", "Good! Green or black? Tell me.", 9, DAY),
    ]
    made = memories.ledger(exchanges(talk), None, room=100, why="")
    assert made.text == "[2024-03-01] User: I like tea.\nYou: Good!"
    assert (made.until, made.covers, made.edited_by) == ("b", ("a", "b"), "rules")


def test_a_ledger_is_bounded_and_its_oldest_lines_leave() -> None:
    made = memories.ledger(exchanges(turns(50)), None, room=600, why="")
    assert made.covers[-1] == "m98"
    assert 0 < len(made.covers) < 12


def test_where_a_ledger_is_short_what_the_user_said_stands_before_what_the_model_said() -> None:
    told = ["My cat is Miro.", "I live in Graz.", "I like tea."]
    talk = []
    for n, fact in enumerate(told):
        said = f"I am glad that you told me number {n}, thank you."
        talk += [Turn(f"user{n}", "user", fact, len(fact)), Turn(f"answer{n}", "assistant", said, len(said))]
    made = memories.ledger(exchanges(talk), None, room=150, why="")
    assert made.text == (
        "User: My cat is Miro.\nUser: I live in Graz.\nUser: I like tea.\n"
        "You: I am glad that you told me number 2, thank you."
    )
    assert made.covers == ("user0", "user1", "user2", "answer2")
    assert tokens_of_text(made.text, talk) <= 150


def test_a_text_too_long_for_a_ledger_takes_nothing_else_out_of_it() -> None:
    talk = [*turns(2), Turn("paste", "user", "x" * 900, 900, DAY), Turn("read", "assistant", "Read.", 5, DAY)]
    made = memories.ledger(exchanges([*talk, *turns(1)]), None, room=500, why="")
    assert "word0" in made.text
    assert "xxx" * 100 not in made.text
    assert not {"paste", "read"} & set(made.covers)


def test_what_a_person_wrote_into_a_memory_stays_when_it_grows() -> None:
    talk = turns(6)
    edited = Memory("ledger", "I am called Ada.", "m3", ("m0", "m1", "m2", "m3"), "user")
    made = memories.ledger(exchanges(talk[:8]), edited, room=2000, why="")
    assert made.text.startswith("I am called Ada.\n")
    assert "word4" in made.text
    assert "word0" not in made.text


@pytest.mark.parametrize(
    ("said", "ended", "reason"),
    [
        ("", True, "empty"),
        ("Ada likes tea and lives in Graz", False, "runs on"),
        ("tea is nice and warm " * 30, True, "repeats itself"),
        (memories.SUMMARY_PROMPT, True, "repeats the instruction"),
        ("They spoke about several things at length.", True, "names nothing"),
    ],
)
def test_a_summary_that_is_no_good_is_refused_with_the_reason(said: str, ended: bool, reason: str) -> None:
    told = "My name is Ada, I live in Graz since 2019 and my cat is Miro."
    talk = [Turn("a", "user", told, 20, DAY), Turn("b", "assistant", "Nice.", 3, DAY), *turns(20)]
    found = strategy_named("summary").compact(talk, None, BUDGET)
    assert found is not None
    answer = found.check(said, ended)
    assert isinstance(answer, Refused)
    assert reason in answer.reason
    good = found.check("Ada lives in Graz with the cat Miro.", True)
    assert isinstance(good, Memory)
    assert (good.kind, good.edited_by, good.until) == ("summary", "model", found.until)


def test_what_a_model_writes_is_not_used_once_a_message_is_excluded_that_it_had_read_and_that_stays() -> None:
    talk = turns(20)
    summary = strategy_named("summary")
    found = summary.compact(talk, None, BUDGET)
    assert found is not None
    made = found.check("word0 and word39 were told.", True)
    assert isinstance(made, Memory)
    whole = summary.select(talk, made, BUDGET)
    assert whole.memory == made
    assert talk[-1].id in whole.kept
    assert not set(whole.kept) & set(whole.compacted)
    assert {*whole.kept, *whole.compacted} == {turn.id for turn in talk}
    barred = [replace(turn, excluded=turn is talk[-1]) for turn in talk]
    roomy = Budget(window=9000, answer=0)
    assert summary.select(barred, made, roomy).memory is None
    stands = memories.ledger(exchanges(talk[:30]), made, room=2000, why="", adds=True)
    assert made.text in stands.text
    assert summary.select(barred, stands, roomy).memory is None


@pytest.mark.parametrize("name", ["summary", "facts"])
def test_what_a_person_wrote_into_a_memory_stays_when_a_model_writes_the_next_one(name: str) -> None:
    talk = turns(20)
    strategy = strategy_named(name)
    edited = Memory("summary", "I am called Ada.\n\nNever call me Eve.", "m1", ("m0", "m1"), "user")
    found = strategy.compact(talk, edited, BUDGET)
    assert found is not None
    made = found.check("She lives in Graz.\nI am called Ada.", True)
    assert isinstance(made, Memory)
    assert (made.text, made.edited_by) == (f"{edited.text}\nShe lives in Graz.", "user")
    long = replace(edited, text="I am called Ada.\n" * 200)
    found = strategy.compact(talk, long, BUDGET)
    assert found is not None
    assert isinstance(found.check("She lives in Graz.", True), Refused)


def test_facts_are_added_and_never_told_twice() -> None:
    talk = turns(20)
    before = Memory("facts", "- likes tea", "m1", ("m0", "m1"), "model")
    found = strategy_named("facts").compact(talk, before, BUDGET)
    assert found is not None
    made = found.check("- Likes tea.\n- lives in Graz", True)
    assert isinstance(made, Memory)
    assert made.text == "- likes tea\n- lives in Graz"


def test_facts_stay_where_rules_have_to_stand_in() -> None:
    talk = turns(40)
    facts = strategy_named("facts")
    before = Memory("facts", "- likes tea", "m1", ("m0", "m1"), "model")
    found = facts.compact(talk[:40], before, BUDGET)
    assert found is not None
    assert found.rules.text.startswith("- likes tea\n")
    assert "word0" not in found.rules.text
    again = facts.compact(talk, found.rules, BUDGET)
    assert again is not None
    made = again.check("- lives in Graz", True)
    assert isinstance(made, Memory)
    assert (made.text.splitlines()[0], made.text.splitlines()[-1]) == ("- likes tea", "- lives in Graz")
    assert tokens_of_text(made.text, talk) <= BUDGET.memory


def test_a_message_that_is_nearly_all_there_is_does_not_compact_again_and_again() -> None:
    ledger = strategy_named("ledger")
    talk = [*turns(3), Turn("paste", "user", "x" * 3400, 3400, DAY), Turn("read", "assistant", "ok", 5, DAY)]
    first = ledger.compact([*turns(8), *talk[-2:]], None, BUDGET)
    assert first is not None
    assert ledger.compact([*turns(8), *talk[-2:]], first.rules, BUDGET) is None, "nothing new would leave"
    assert ledger.compact(talk, None, BUDGET) is None, "too little would leave to be worth it"
    pins = [replace(turn, pinned=True) for turn in turns(15)]
    assert ledger.compact([*pins, Turn("q", "user", "why", 5, DAY)], None, BUDGET) is None


def test_where_no_idle_time_comes_rules_make_room_long_before_a_fast_machine_s_window() -> None:
    slow = Budget(window=8192, answer=1000, latency=1000, latency_why="slow")
    assert slow.ceiling == 3000
    assert Budget(window=8192, answer=1000).ceiling == 7192
    ledger = strategy_named("ledger")
    assert not ledger.select(turns(14), None, slow).fresh
    made = ledger.select(turns(16), None, slow)
    assert made.fresh
    assert made.memory is not None
    assert made.memory.why == made.why
    assert "first token" in made.why
    assert len(made.kept) * 100 <= slow.low
    assert not strategy_named("full").select(turns(16), None, slow).fresh


def test_hybrid_lets_only_large_models_write() -> None:
    written = [
        strategy_named("hybrid", parameters=n) for n in (None, 135_000_000, 3_000_000_000, 8_000_000_000)
    ]
    assert [s.writes for s in written if isinstance(s, Remembering)] == ["ledger", "ledger", "facts", "both"]


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match="no strategy 'best'") as caught:
        strategy_named("best")
    assert "hybrid" in caught.value.hint


def test_a_strategy_of_one_s_own_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallychat.context.strategies._BY_NAME", {})
    own = LastN(1, name="mine")
    register_strategy(own)
    assert names() == ("mine",)
    assert isinstance(strategy_named("mine"), LastN)


def test_a_memory_of_what_was_excluded_since_is_not_used() -> None:
    talk = turns(4)
    memory = Memory("ledger", "word0", "m3", ("m0", "m1", "m2", "m3"))
    barred = [replace(turn, excluded=turn.id == "m0") for turn in talk]
    chosen: Selection = strategy_named("ledger").select(barred, memory, BUDGET)
    assert chosen.memory is None
    assert (chosen.excluded, chosen.kept[0]) == (("m0",), "m2")


def test_a_question_looks_back_and_small_talk_does_not() -> None:
    assert wanted("What is my cat called?")
    assert wanted("What did we talk about on May 4th?")
    assert not wanted("Write a poem about winter.")
    assert not wanted("I painted today.")


def test_days_are_read_as_people_write_them() -> None:
    assert days_in("on May 4th, 27 April and 2023-12-01") == {(5, 4), (4, 27), (12, 1)}


def test_a_user_s_words_count_more_unless_the_model_s_are_asked_for() -> None:
    talk = [
        Turn("u", "user", "tea", 2, DAY),
        Turn("x", "user", "so", 2, DAY),
        Turn("a", "assistant", "tea", 2, DAY),
    ]
    hits = [Hit("u", 0, 3, 1.0), Hit("a", 0, 3, 1.0)]
    mine = scores(talk, hits, "Which tea do I like?")
    yours = scores(talk, hits, "Which tea did you recommend to me?")
    assert [found.id for found in mine] == ["u", "a"]
    assert [found.id for found in yours] == ["a", "u"]


def test_quotes_fit_their_room_and_stand_in_order_with_dates() -> None:
    talk = turns(10)
    best = [Found(name, 0, 1000, score) for name, score in (("m8", 3.0), ("m2", 2.0), ("m4", 0.1))]
    taken = quotes(talk, best, room=1000)
    assert [quote.id for quote in taken] == ["m2", "m8"], "what fits a twentieth as well is not quoted"
    assert block(taken).startswith("[From earlier in this conversation:\n2024-03-01 User: word2.")
    assert [quote.id for quote in quotes(talk, best, room=190)] == ["m8"]


def hybrid(window: int = 600) -> Talk:
    return Talk(strategy_named("hybrid"), window=window)


async def test_an_old_fact_is_quoted_beside_the_question_and_stays_in_the_prompt() -> None:
    talk = hybrid()
    await talk.turn("my cat is called Miro", "noted")
    for n in range(12):
        await talk.turn(f"t{n} " + "filler " * 20, "ok " * 5)
    plan = await talk.turn("what is my cat called ?", "Miro")
    assert "m1" in plan.report.retrieved
    [quote] = [s for s in plan.report.segments if s.kind == "retrieved" and s.message_id == "m1"]
    assert quote.score
    after = await talk.turn("thanks", "sure")
    assert after.ids[: len(plan.ids)] == plan.ids
    assert after.report.diverged_at is None


@pytest.mark.parametrize("reading", [None, 5.0])
async def test_asked_again_a_question_has_the_same_quotes(reading: float | None) -> None:
    talk = hybrid()
    talk.budget = replace(talk.limits, reading=reading)
    await talk.turn("my cat is called Miro. " + "It is asleep nearly all day. " * 12, "noted")
    for n in range(12):
        await talk.turn(f"t{n} " + "filler " * 20, "ok " * 5)
    first = await talk.turn("what is my cat called ?", "Miro")
    talk.path.pop()
    again = await talk.answer("Miro!")
    assert again.ids == first.ids
    assert again.report.retrieved == first.report.retrieved


async def test_what_idle_time_warms_is_how_the_next_prompt_begins() -> None:
    talk = hybrid(4000)
    for n in range(20):
        await talk.turn(f"t{n} " + "filler " * 30, "ok " * 20)
    found = talk.strategy.compact(turns_of(talk.path), None, talk.limits)
    assert found is not None
    ahead = await talk.plan(memory=found.rules)
    talk.memories.append(replace(found.rules, version=1))
    plan = await talk.turn("and now", "yes")
    assert plan.ids[: len(ahead.ids)] == ahead.ids
    assert len(plan.ids) - len(ahead.ids) < 30
    assert plan.report.memory == 1


async def test_a_branch_that_leaves_before_the_memory_does_not_have_it() -> None:
    talk = hybrid()
    for n in range(14):
        await talk.turn(f"t{n} " + "filler " * 20, "ok " * 5)
    assert talk.memories
    del talk.path[2:]
    plan = await talk.turn("another way", "yes")
    assert plan.report.memory == 0
    assert plan.report.kept == ("m1", "m2", talk.path[2].id)


async def test_a_copy_of_a_conversation_goes_on_with_the_same_ids_under_its_memory() -> None:
    talk = hybrid()
    await talk.turn("my cat is called Miro", "noted")
    for n in range(14):
        await talk.turn(f"t{n} " + "filler " * 20, "ok " * 5)
    await talk.turn("what is my cat called ?", "Miro")
    talk.add("user", "thanks")
    memory = talk.memories[-1]
    copy = [replace(row, id=f"copied {row.id}") for row in talk.path]
    covers = tuple(f"copied {name}" for name in memory.covers)
    known = replace(memory, until=f"copied {memory.until}", covers=covers)
    prompts, costs = [], []
    for path, its_memory in ((talk.path, memory), (copy, known)):
        before = talk.tokens.asked
        prompts.append((await talk.plan(path, its_memory)).ids)
        costs.append(talk.tokens.asked - before)
    assert prompts[0] == prompts[1]
    assert costs[0] == costs[1]


async def test_more_pins_than_the_window_holds_are_an_error_that_says_so() -> None:
    talk = hybrid(300)
    for n in range(6):
        talk.add("user", f"t{n} " + "filler " * 20)
        talk.add("assistant", "ok")
        talk.mark(2 * n, "pin")
    talk.add("user", "now")
    with pytest.raises(ContextOverflow) as caught:
        await talk.plan()
    assert "unpin" in caught.value.hint


async def test_what_is_too_long_for_the_window_is_named() -> None:
    long = "filler " * 700
    system = Talk(strategy_named("hybrid"), system=long)
    message, memory = hybrid(), hybrid()
    for n in range(14):
        await memory.turn(f"t{n} " + "filler " * 20, "ok " * 5)
    memory.memories = [replace(memory.memories[-1], text=long, edited_by="user")]
    named = []
    for talk, said in ((system, "now"), (message, long), (memory, "now")):
        talk.add("user", said)
        with pytest.raises(ContextOverflow) as caught:
            await talk.plan()
        named.append(caught.value.hint.partition(",")[0])
    assert named == ["shorten the system prompt", "shorten the message", "shorten the memory"]


async def test_a_template_of_unknown_boundaries_is_trimmed_all_the_same() -> None:
    upper = "{% for m in messages %}{{ m.content | upper }} {% endfor %}"
    talk = Talk(strategy_named("full"), PromptTemplate(upper), system="", window=200)
    for n in range(12):
        plan = await talk.turn(f"t{n} " + "filler " * 10, "ok")
        assert len(plan.ids) <= talk.limits.limit
    assert plan.report.dropped


WRITES_OTHERWISE = (
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)
"""Answers stand in its history otherwise than they are asked for."""


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("template", [CHATML, WRITES_OTHERWISE])
async def test_an_answer_goes_on_where_it_was_left(template: str, logged: bool) -> None:
    talk = Talk(strategy_named("full"), PromptTemplate(template), system="")
    await talk.turn("one two", "three")
    talk.add("user", "four five")
    asked = await talk.plan()
    said = talk.tokens.ids("six seven")
    talk.add("assistant", "six seven", TokenSpan(asked.key, tuple(said)) if logged else None)
    more = await talk.plan()
    assert (more.ids, more.said, asked.said) == (asked.ids + said, len(said), 0)
    kept = more.spans.get(talk.path[-1].id, talk.path[-1].span)
    assert kept is not None, "what comes is kept behind it"
    assert list(kept.ids) == said


def test_the_answer_gets_what_was_asked_but_never_more_than_half() -> None:
    assert [answer_reserve(8192, n) for n in (None, 100, 8000)] == [1024, 100, 4096]
