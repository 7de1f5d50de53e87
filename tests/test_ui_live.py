from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rallychat.ui.live import LiveMarkdown
from rallychat.ui.markdown import render
from tests.test_ui_markdown import live

BLOCKS = [
    "A paragraph with **bold** and `code` and 😀.\n\n",
    "# A heading\n\n",
    "- one\n- two\n- three\n\n",
    "1. one\n2. two\n\n   more of two\n\n",
    "```python\ndef f():\n\n    return 1\n```\n\n",
    "> quoted\n> twice\n\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n",
    "---\n\n",
    "Title\n=====\n\n",
    "- a\n#tag that goes on lazily\n\n",
    "A line\nand **another**\n* and a list\n\n",
    "1) other numbers\n2) two\n\n",
    "~~~\nno language\n",
    "    indented code\n\n    goes on\n\n",
    "***\n",
    "$$\na_1\n\n- b\n= c\n$$\n\n",
    "It is \\(x < y\\), so \\[\nx + \\frac{1}{2}\n\\] and on.\n\n",
    "\\[ never closed\n\n",
    "A meal for $$ to $$$, or $5.\n\n",
]


@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=8).map("".join), st.integers(1, 40))
@settings(deadline=None)
def test_a_growing_answer_ends_as_the_finished_one_is_shown(text: str, step: int) -> None:
    assert live(text, step=step) == render(text)


def test_a_finished_block_is_sent_once() -> None:
    view = LiveMarkdown()
    sent = [view.grow(piece) for piece in ("First.\n\n", "Second", " and more", ".\n\nThird")]
    assert [update.finished for update in sent] == ["", "<p>First.</p>\n", "", "<p>Second and more.</p>\n"]


def test_an_update_is_as_small_as_what_was_added() -> None:
    view = LiveMarkdown()
    view.grow("word " * 400)
    update = view.grow("end")
    assert update.tail == " end</p>\n"


def test_an_update_late_in_a_long_answer_is_no_larger_than_an_early_one() -> None:
    view = LiveMarkdown()
    early = view.grow("A paragraph of some length.\n\nNext")
    for _ in range(300):
        late = view.grow(" one.\n\nNext")
    assert len(late.finished + late.tail) <= len(early.finished + early.tail)


def test_the_kept_part_is_counted_as_javascript_counts() -> None:
    view = LiveMarkdown()
    view.grow("😀😀 a")
    assert view.grow("b").keep == len("<p>") + 2 * 2 + len(" a")


def test_a_first_line_that_may_still_change_its_meaning_settles_nothing() -> None:
    view = LiveMarkdown()
    assert view.grow("- a\n#").finished == ""
    assert view.grow("tag").finished == ""


def test_a_long_block_of_code_gets_its_colours_when_it_is_finished() -> None:
    view = LiveMarkdown()
    growing = view.grow("```python\n" + "def f(): ...\n" * 400)
    assert "hl-k" not in growing.tail
    finished = view.grow("```\n\nThat was it.\n")
    assert finished.finished.count('<span class="hl-k">def</span>') == 400
