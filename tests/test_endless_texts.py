"""Texts that are made to be slow: what reads them takes time in proportion to their length, for others wait."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rallychat.ui import formulas
from rallychat.ui.markdown import render

ANY_MACHINE = 200
"""Seconds within which a second's work is done. Broken, each of these takes hours."""


@pytest.mark.parametrize(
    "reading",
    [
        "from rallychat.context.retrieval import looks_back; looks_back('Is it my ' + ', ' * 500_000 + '?')",
        r"from rallychat.ui.markdown import render; render('$$' + '\n' * 1_000_000)",
        "from rallychat.store.search import passage_query; passage_query('1월' * 300_000)",
    ],
)
def test_a_long_text_without_words_is_read_at_once(reading: str) -> None:
    subprocess.run([sys.executable, "-c", reading], timeout=ANY_MACHINE, check=True)


def test_formulas_that_are_opened_and_never_closed_are_not_looked_for_line_by_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, line = [0], formulas._line

    def counted(*where: Any) -> str:
        looked[0] += 1
        return line(*where)

    monkeypatch.setattr(formulas, "_line", counted)
    render("\\[\n" * 1000)
    assert 1000 <= looked[0] <= 3000
