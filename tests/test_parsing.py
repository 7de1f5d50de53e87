"""Reasoning is told from speech, however the text is cut on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.catalog import Catalog
from rallychat.catalog.types import ReasoningTags
from rallychat.messages import Part, Reasoning, ReasoningDelta, Text
from rallychat.parsing import AnswerParser
from rallychat.settings import Settings

TAGS = ReasoningTags(open="<think>", close="</think>")


def parsed(
    chunks: list[str], tags: ReasoningTags | None = TAGS, resume: tuple[Part, ...] = ()
) -> tuple[Part, ...]:
    parser = AnswerParser(tags, resume=resume)
    for chunk in chunks:
        parser.feed(chunk)
    parser.finish()
    return parser.parts


def test_reasoning_is_hidden_when_the_tag_is_split_across_chunks() -> None:
    assert parsed(["<th", "ink>\nhm", "m</thi", "nk>\n\nHello"]) == (Reasoning("hmm"), Text("Hello"))


def test_without_tags_everything_is_said() -> None:
    assert parsed(["<think>", "a"], tags=None) == (Text("<think>a"),)


def test_an_answer_that_begins_inside_its_reasoning() -> None:
    tags = ReasoningTags(open="<think>", close="</think>", starts_open=True)
    assert parsed(["hm</think>yes"], tags) == (Reasoning("hm"), Text("yes"))


def test_what_only_looks_like_a_tag_comes_out_at_the_end() -> None:
    assert parsed(["a <thi"]) == (Text("a <thi"),)


def test_a_continued_answer_goes_on_inside_what_it_was_in() -> None:
    assert parsed(["more</think>done"], resume=(Reasoning("hm "),)) == (Reasoning("hm more"), Text("done"))
    assert parsed(["!"], resume=(Reasoning(""), Text("Hi"))) == (Reasoning(""), Text("Hi!"))  # one taken out


@given(
    st.data(),
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", "\n", "héllo ", "🦜"]), max_size=12),
)
def test_every_split_of_a_stream_gives_the_same_parts(data: st.DataObject, words: list[str]) -> None:
    text = "".join(words)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parsed(chunks) == parsed([text])


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "a", "b c", "\n"]), max_size=10))
def test_deltas_add_up_to_the_parts(words: list[str]) -> None:
    parser = AnswerParser(TAGS)
    deltas = [delta for word in words for delta in parser.feed(word)] + parser.finish()
    for kind, wanted in ((Text, False), (Reasoning, True)):
        told = "".join(d.text for d in deltas if isinstance(d, ReasoningDelta) is wanted)
        assert told == "".join(part.text for part in parser.parts if isinstance(part, kind))


@pytest.mark.parametrize("cuts", [1, 3, 200])
@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("<|channel|>final<|message|>Yes.", (Text("Yes."),)),
        (
            "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Yes.",
            (Reasoning("Hm."), Text("Yes.")),
        ),
        ("<|channel|>fin", (Text("<|channel|>fin"),)),
        ("Yes.", (Text("Yes."),)),
        ("<|channel|>final<|message|>", ()),
    ],
)
def test_an_answer_that_is_given_straight_has_nothing_of_the_tags(
    answer: str, parts: tuple[Part, ...], cuts: int
) -> None:
    settings = Settings(data_dir=Path("/nowhere"))
    parser = AnswerParser(Catalog.load(settings).families["gpt-oss"].reasoning)
    for at in range(0, len(answer), cuts):
        parser.feed(answer[at : at + cuts])
    parser.finish()
    assert parser.parts == parts
