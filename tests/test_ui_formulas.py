r"""Formulas in answers: what is drawn, and what stays as it was written."""

from __future__ import annotations

import re
from typing import NoReturn

import pytest

from rallychat.ui import formulas
from rallychat.ui.formulas import LONGEST, open_formula
from rallychat.ui.markdown import render
from tests.test_ui_markdown import live


@pytest.mark.parametrize(
    "text", ["$$x^2$$", r"\[x^2\]", "$$\nx^2\n$$", "\\[\nx^2\n\\]", "$$ x^2 $$", "see: $$x^2$$."]
)
def test_a_formula_of_its_own_is_drawn_as_a_block(text: str) -> None:
    html = render(text)
    assert '<math display="block">' in html
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in re.sub(r"</?mrow>", "", html)
    assert "$" not in html


def test_a_formula_in_a_sentence_stays_in_it() -> None:
    html = render(r"Let \(n \ge 2\), then **\(n\)** is it.")
    assert html.startswith('<p>Let <math display="inline">')
    assert "<strong><math" in html
    assert "≥" in html


def test_a_fault_of_the_formula_library_is_told_once_and_wrong_tex_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(tex: str, **_: str) -> NoReturn:
        raise KeyError(tex)

    formulas._tell.cache_clear()
    assert '<code class="formula-source">x_1_2</code>' in render(r"\(x_1_2\)")
    assert caplog.messages == []
    monkeypatch.setattr("latex2mathml.converter.convert_to_element", fails)
    for secret in ("secret + 1", "secret + 2"):
        assert f'<code class="formula-source">{secret}</code>' in render(rf"\({secret}\)")
    [told] = caplog.messages
    assert "KeyError in" in told
    assert "secret" not in told


def test_the_name_of_a_function_stands_off_from_its_neighbours_but_not_from_brackets() -> None:
    thin = '<mspace width="0.167em"></mspace>'
    assert f"<mi>n</mi>{thin}<mi>log</mi>{thin}<mi>n</mi>" in render(r"\(n \log n\)")
    assert thin not in render(r"\(\max(a, b) + 1\)")


def test_lines_of_a_formula_are_not_taken_for_lists_headings_or_quotes() -> None:
    html = render("So\n\\[\na\n- b\n= c\n\n> 0\n\\]\nand on.")
    assert [html.count(tag) for tag in ("<ul", "<h1", "<h2", "<blockquote", "<math")] == [0, 0, 0, 0, 1]
    assert html.startswith("<p>So</p>")
    assert html.endswith("<p>and on.</p>\n")


def test_a_formula_stands_in_lists_quotes_and_tables() -> None:
    assert "<li>" in (html := render("- one\n- $$\n  x_1\n  $$\n"))
    assert "<msub>" in html
    assert "<blockquote>" in (html := render("> \\[\n> x_1\n> \\]\n"))
    assert "<msub>" in html
    assert "<td><math" in render("| a |\n|---|\n| \\(x_1\\) |\n")


@pytest.mark.parametrize(
    "tex", ["x", "x'", "x^2", "a + b", "n>1", r"\sqrt{2}", "f(x) = 2x", r"\alpha", "O(n)", "2n", "n!"]
)
def test_a_formula_may_stand_between_two_dollars(tex: str) -> None:
    html = render(f"Let ${tex}$, which is **(${tex}$)** small.")
    assert html.count('<math display="inline">') == html.count("<math") == 2
    assert "$" not in html


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and then $10.",
        "Either $5/$10, or $5 + $10, or US$5 and $6.",
        "Set $HOME_DIR/$NAME, ${A}_$B or $A_$B.",
        "`$x^2$` and $ x^2 $ and $x^2 $ and \\$x^2$",
        "What costs $5-6$7 is $cheap$ here.",
        "$x\n= 1$",
        "Restaurants from $$ to $$$ are near.",
        "Cheap is $$ and dear $$ too.",
        "From $1,000 to $2,000 (about 5%).",
        r"a path C:\\(x\\) and \\[y\\]",
        "`$$x^2$$` and `\\(x\\)`",
        "```\n$$\nx^2\n$$\n```",
        "    $$x^2$$",
        "$$\n```\nx = 1\n```\n$$",
        r"\[ never closed",
        "$$$$ and $$ $$",
        "$$" + "x" * (LONGEST + 1) + "$$",
    ],
)
def test_money_code_and_what_is_not_closed_are_no_formulas(text: str) -> None:
    assert "<math" not in render(text)


@pytest.mark.parametrize(
    "text", [r"\(\left( x\)", r"\[\begin{matrix} 1\]", "$$^$$", "$$" + "{" * 900 + "}" * 900 + "$$"]
)
def test_what_cannot_be_read_is_shown_as_it_was_written(text: str) -> None:
    html = render(text)
    assert "formula-source" in html or "<math" in html


def test_text_in_a_formula_is_text() -> None:
    html = render(r'\(\text{a <b> & "c"}\)')
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


def test_a_growing_answer_waits_for_the_end_of_its_formula() -> None:
    text = "First.\n\n$$\na_1\n\n- b\n\n# c\n$$\n\nLast."
    for step in (1, 3, 7):
        assert live(text, step=step) == render(text)


def test_what_was_opened_long_ago_and_never_closed_holds_nothing_back() -> None:
    assert open_formula("$$ x") == 0
    assert open_formula("$$ x $$") is None
    assert open_formula(r"\\( x") is None
    assert open_formula("$$ " + "x" * LONGEST) is None
