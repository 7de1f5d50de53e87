"""What is found of what was said: passages, languages, meaning, other conversations."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rallychat.context import embedding
from rallychat.context.index import AT_ONCE, Index
from rallychat.context.passages import BRIEF, LENGTH, WHOLE, passages, sentences
from rallychat.context.retrieval import (
    Found,
    Quote,
    block,
    looks_back,
    quotes,
    recalled,
    scores,
    sure,
    wanted,
)
from rallychat.context.strategies import strategy_named
from rallychat.context.types import MOST_QUOTED, QUOTED, Budget, Turn
from rallychat.errors import SettingsError
from rallychat.identity import acting_as
from rallychat.messages import Message, Text
from rallychat.recall import Recall
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests.context_world import Talk

DAY = datetime(2024, 3, 1, tzinfo=UTC)


def turn(name: str, text: str, role: str = "user") -> Turn:
    return Turn(name, role, text, len(text) // 4 + 1, DAY)  # type: ignore[arg-type]


def answers(
    said: dict[str, str], question: str, *, embedder: embedding.Embedder | None = None
) -> list[Quote]:
    turns = [turn(name, text) for name, text in said.items()]
    index = Index(embedder)
    index.take(turns)
    return quotes(turns, scores(turns, index.find(question), question), room=10_000)


# --- passages -----------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.sampled_from("ab .!?\n。한é"), max_size=4000))
def test_passages_are_a_text_without_gaps_and_none_is_long(text: str) -> None:
    spans = passages(text)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(b - a <= max(LENGTH, WHOLE if len(spans) == 1 else 0) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def pasted() -> str:
    lines = [
        f"Section {n} tells of cattle, corn and the weather in the valley of year {1700 + n}."
        for n in range(150)
    ]
    lines[90] = "The treaty of Zadar was signed by Countess Elena in the old mill."
    return " ".join(lines)


def test_a_long_pasted_text_is_quoted_by_the_passage_that_answers() -> None:
    text = pasted()
    said = {f"x{n}": f"Tell me about breakfast number {n} and its eggs." for n in range(40)} | {"long": text}
    taken = answers(said, "Who signed the treaty of Zadar in my text?")
    best = max(taken, key=lambda quote: quote.score)
    assert best.id == "long"
    assert "Countess Elena" in best.line
    assert len(best.line) < 600
    assert best.line.startswith("2024-03-01 User: … ")
    assert best.line.endswith(" …")


@given(
    texts=st.lists(st.text(alphabet="abc ABC.\n", min_size=1, max_size=3000), min_size=1, max_size=6),
    room=st.integers(0, 700),
)
def test_quotes_never_exceed_their_room_and_are_verbatim(texts: list[str], room: int) -> None:
    turns = [turn(f"m{n}", text) for n, text in enumerate(texts)]
    index = Index()
    index.take(turns)
    question = "Where is my abc or ABC?"
    taken = quotes(turns, scores(turns, index.find(question), question), room=room)
    assert sum(quote.tokens for quote in taken) <= room
    for quote in taken:
        words = quote.line.removeprefix("2024-03-01 User: ").removeprefix("… ").removesuffix(" …")
        assert words in texts[int(quote.id[1:])]
    assert all(quote.line in block(taken) for quote in taken)


async def test_a_text_pasted_early_is_quoted_in_a_conversation_that_goes_on() -> None:
    talk = Talk(strategy_named("hybrid"), window=8000)
    await talk.turn(pasted(), "I have read it")
    for n in range(24):
        await talk.turn(f"t{n} " + "filler " * 90, "ok " * 30)
    plan = await talk.turn("Who signed the treaty of Zadar in my text?", "Elena")
    assert "m1" in {*plan.report.dropped, *plan.report.compacted}
    assert "m1" in plan.report.retrieved
    assert "Countess Elena" in talk.tokens.text(plan.ids)
    quoted = sum(part.tokens for part in plan.report.segments if part.kind == "retrieved")
    assert quoted <= talk.limits.retrieved


# --- languages ----------------------------------------------------------------------------------------------

LANGUAGES: dict[str, tuple[str, ...]] = {
    "Korean": ("우리 고양이는 미로라고 해요.", "내 고양이 이름이 뭐였지?", "날씨가 좋네요.", "저녁에 밥을 먹었어요."),
    "Chinese": ("我的猫叫米洛，今年三岁。", "我家的猫叫什么名字？", "今天天气很好。", "我晚上吃了面条。"),
    "Japanese": ("うちの猫の名前はミロです。", "私の猫の名前は何でしたか？", "いい天気ですね。", "夜に麺を食べた。"),
    "Ukrainian": ("Мого собаку звуть Рекс.", "Як звати мого собаку?", "Сьогодні гарна погода.", "Увечері їли борщ."),
    "German": ("Mein Hund heißt Rex.", "Wie heißt mein Hund?", "Heute ist das Wetter schön.", "Abends gab es Suppe."),
    "Greek": ("Ο σκύλος μου λέγεται Ρεξ.", "Πώς λέγεται ο σκύλος μου;", "Σήμερα έχει καλό καιρό.", "Φάγαμε σούπα."),
    "Thai": ("แมวของฉันชื่อมิโล", "แมวของฉันชื่ออะไร?", "วันนี้อากาศดี", "กินก๋วยเตี๋ยวตอนเย็น"),
    "Arabic": ("اسم قطتي ميلو.", "ما اسم قطتي؟", "الطقس جميل اليوم.", "أكلنا الحساء مساء."),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_finds_its_message_in_every_script(language: str) -> None:
    fact, question, *chatter = LANGUAGES[language]
    said = {f"x{n}": f"{text} {n}" for n, text in enumerate(chatter * 8)} | {"fact": fact}
    said |= {f"y{n}": f"{text} {n}" for n, text in enumerate(chatter * 8)}
    taken = answers(said, question)
    assert taken
    assert max(taken, key=lambda quote: quote.score).id == "fact"


def test_days_of_other_languages_are_dates() -> None:
    for question in (
        "3월 1일에 내가 뭐라고 했지?",
        "3月1日に私は何を言いましたか？",
        "Was habe ich am 1.3. gesagt?",
    ):
        turns = [turn("that", "x y z"), Turn("other", "user", "x y z", 3, DAY.replace(month=5))]
        assert [found.id for found in scores(turns, [], question)] == ["that"]


def test_a_statement_of_another_language_quotes_nothing() -> None:
    for text in ("오늘은 날씨가 좋네요.", "Ich gehe heute schwimmen.", "今天天气很好。"):
        assert not wanted(text)


# --- meaning ------------------------------------------------------------------------------------------------


class Synonyms:
    """Vectors of subjects: what is about the same subject is alike."""

    name = "synonyms"
    subjects = (("town", "moving", "lease"), ("supper", "ramen"), ("bus", "train"))

    def knows(self, text: str) -> bool:
        return text.isascii()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[float(any(word in text for word in about)) for about in self.subjects] for text in texts]
        found = np.array(rows, dtype=np.float32)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        np.divide(found, lengths, out=found, where=lengths > 0)
        return found


SAID = {
    "a": "we had ramen",
    "fact": "we are moving to Lisbon, the lease is signed",
    "b": "the train was late",
}


def test_meaning_finds_what_shares_no_word_and_says_so() -> None:
    question = "Which town will I live in?"
    assert answers(SAID, question) == []
    [found] = answers(SAID, question, embedder=Synonyms())
    assert (found.id, found.by) == ("fact", "meaning")
    [both] = answers(SAID, "Which town am I moving to?", embedder=Synonyms())
    assert (both.id, both.by) == ("fact", "both")


def test_where_vectors_mean_nothing_the_words_decide() -> None:
    [found] = answers({"ko": "우리 고양이는 미로라고 해요"}, "내 고양이 이름이 뭐였지?", embedder=Synonyms())
    assert found.by == "words"


def test_a_message_that_was_changed_is_found_by_what_it_says_now() -> None:
    index = Index(Synonyms())
    index.take([turn("m", "my cat is called Miro")])
    assert [hit.id for hit in index.find("cat?")] == ["m"]
    index.take([turn("m", "my dog is called Rex")])
    assert index.find("cat?") == []
    assert [hit.id for hit in index.find("dog?")] == ["m"]


class Slow(Synonyms):
    """Makes its vectors once somebody has found something meanwhile, or gives up."""

    def __init__(self) -> None:
        self.begun, self.found = threading.Event(), threading.Event()
        self.found_meanwhile = False

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.begun.set()
        self.found_meanwhile = self.found.wait(30)
        return super().embed(texts)


def test_who_searches_does_not_wait_for_vectors_that_are_being_made() -> None:
    slow = Slow()
    index = Index(slow)
    index.take([turn("m", "my cat is called Miro"), *(turn(f"{n}", "the train") for n in range(AT_ONCE))])
    making = threading.Thread(target=index.understand)
    making.start()
    assert slow.begun.wait(30)
    assert [hit.id for hit in index.find("cat?")] == ["m"]
    slow.found.set()
    making.join()
    assert slow.found_meanwhile
    assert index.without_meaning == 0


def test_our_own_vectors_need_no_network_and_leave_the_logging_alone() -> None:
    pytest.importorskip("wordllama")
    import logging

    before = logging.getLogger().handlers[:], logging.getLogger().level
    ours = embedding.embedder()
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    vectors = ours.embed(["the kitten sleeps", "a cat is napping", "tax law of 1980", ""])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not vectors[3].any()
    assert ours.knows("Où est-ce?")
    assert not ours.knows("내 고양이")


# --- the store's conversations ----------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as opened:
        yield opened


async def said(store: ConversationStore, text: str, *, title: str = "") -> tuple[str, str]:
    chat = (await store.create(title=title)).id
    row, answer = await store.answers.begin(chat, parent_id=None, user=Message.of("user", text), model="m")
    await store.answers.finish(answer.id, parts=(Text("noted"),), reason="stop", usage=None, timings=None)
    assert row is not None
    return chat, row.id


ASKED = "What is my cat called?"


async def test_other_conversations_are_quoted_with_date_and_title(store: ConversationStore) -> None:
    _, fact = await said(store, "my cat is called Miro", title="Pets")
    here, _ = await said(store, "my cat is called nothing here")
    recall = Recall(Settings(retrieval="words"), store)
    [quote] = await recall.elsewhere(here, ASKED, 500)
    assert (quote.id, quote.of) == (fact, "Pets")
    assert quote.line.startswith("“Pets”, 20")
    assert quote.line.endswith("User: my cat is called Miro")
    assert await recall.elsewhere(here, ASKED, 10) == []
    assert await recall.elsewhere(here, "Write a poem of a cat.", 500) == []


async def test_nothing_of_another_person_is_quoted(store: ConversationStore) -> None:
    with acting_as("user_bob"):
        await said(store, "my cat is called Secret")
    here, _ = await said(store, "hello")
    recall = Recall(Settings(retrieval="words"), store)
    assert await recall.elsewhere(here, ASKED, 500) == []
    with acting_as("user_bob"):
        own, _ = await said(store, "hello")
        assert len(await recall.elsewhere(own, ASKED, 500)) == 1


async def test_nothing_excluded_deleted_or_left_behind_is_quoted(store: ConversationStore) -> None:
    here, _ = await said(store, "hello")
    recall = Recall(Settings(retrieval="words"), store)
    _, barred = await said(store, "my cat is called Barred")
    await store.contexts.mark(barred, "exclude")
    gone, _ = await said(store, "my cat is called Gone")
    await store.delete(gone)
    edited, _ = await said(store, "my cat is called Left")
    _, answer = await store.answers.begin(edited, parent_id=None, user=Message.of("user", "hello"), model="m")
    await store.answers.finish(answer.id, parts=(Text("noted"),), reason="stop", usage=None, timings=None)
    assert await recall.elsewhere(here, ASKED, 500) == []


async def test_fused_without_the_extra_is_refused_by_name(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> object:
        raise ImportError("wordllama")

    monkeypatch.setattr(embedding, "WordLlama", missing)
    embedding._cached.cache_clear()
    with pytest.raises(SettingsError, match="not installed"):
        Recall(Settings(retrieval="fused"), store)
    embedding._cached.cache_clear()


async def test_auto_goes_by_words_until_the_vectors_are_made_in_idle_time(store: ConversationStore) -> None:
    embedding.register_embedder(Synonyms())
    try:
        recall = Recall(Settings(), store)
        turns = [turn(name, text) for name, text in SAID.items()]
        question = "Which town will I live in?"
        assert await recall.search("c", turns, question) == []
        await recall.keep("c", turns)
        assert [hit.id for hit in await recall.search("c", turns, question)] == ["fact"]
    finally:
        embedding.register_embedder(None)


@pytest.mark.parametrize(
    ("question", "back"),
    [
        ("What was my sister's dog called?", True),
        ("Do you remember the name of my boat?", True),
        ("On May 4th I told you about my plans. Where did I plan to go?", True),
        ("How can I bake my own bread?", False),
        ("What is my cat called?", True),
        ("How much did I pay for the camera?", True),
        ("On which weekday is my team meeting?", True),
        ("What should I do next, as I need more space?", False),
        ("What if I told you that not all rooms are free?", False),
        ("I moved the keys. Then I went out. It rained all day. How many boats are red?", False),
        ("Як звали мого собаку?", True),
        ("내 개 이름이 뭐야?", True),
    ],
)
def test_where_reading_is_slow_only_a_question_that_looks_back_is_answered_with_quotes(
    question: str, back: bool
) -> None:
    assert looks_back(question) is back


def test_where_reading_is_slow_quotes_must_share_words_with_the_question() -> None:
    turns = [Turn("a", "user", "My boat is called Halcyon", 9), Turn("b", "user", "The boat race is on", 9)]
    one = [Found("a", 0, 25, 1.0)]
    assert sure(one, turns, "Do you remember the name my boat was called?")
    assert not sure(one, turns, "Do you remember which painter lived beside that mill in Flanders?")


def asked_slowly(question: str, *texts: str, kept: int = 0, room: int = 120) -> list[str]:
    """The lines that are quoted where reading is slow; the newest `kept` texts are in the prompt."""
    turns = [Turn(f"{number}", "user", text, len(text) // 4) for number, text in enumerate(texts)]
    index = Index()
    index.take(turns)
    out = [turn.id for turn in turns[: len(turns) - kept]]
    hits = index.find(question)
    return [quote.line for quote in recalled(turns, hits, question, out=out, room=room, slow=True)]


CAT = "My cat is called Mara."
ASKED = "What is my cat called?"


def test_where_reading_is_slow_nothing_is_quoted_if_what_fits_best_is_in_the_prompt() -> None:
    assert asked_slowly(ASKED, CAT, "I like boats.") == [f"User: {CAT}"]
    assert asked_slowly(ASKED, "A cat sat there.", CAT, kept=1) == []


def test_where_reading_is_slow_a_long_text_is_quoted_by_its_sentences_that_fit() -> None:
    other = "The weather was fine all that week and nobody in the village had anything to do."
    long = " ".join([*[other] * 4, CAT, "She is black.", *[other] * 4])
    (line,) = asked_slowly(ASKED, long)
    assert CAT in line
    assert "She is black." in line
    assert len(line) <= BRIEF + 20
    assert line.startswith("User: … ")
    assert line.endswith(" …")


@given(st.text(alphabet="ab .\n!", max_size=400), st.data())
def test_sentences_of_a_passage_lie_within_it(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    first, last = sentences(text, (start, end), worth=lambda each: each.count("b"))
    assert start <= first <= last <= end


def test_where_reading_is_slow_quotes_have_few_tokens() -> None:
    budget = Budget(window=8192, answer=0, reading=5.0)
    assert budget.retrieved == MOST_QUOTED
    assert Budget(window=8192, answer=0, reading=20.0).retrieved == int(QUOTED / 20)
    assert Budget(window=8192, answer=0, reading=0.1).retrieved > 1000
