r"""Formulas in Markdown: `$$…$$`, `\[…\]`, `\(…\)` and `$…$`, as MathML that browsers draw themselves.

A `$` that may be a dollar stays one. What comes out is safe by construction: the elements and attributes below, text
escaped.
Knows TeX and Markdown's rules; never sees messages or HTTP.
"""

from __future__ import annotations

import html
import logging
import re
import traceback
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final
from xml.etree.ElementTree import Element

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

log = logging.getLogger(__name__)

LONGEST: Final = 2_000
"""Characters of a formula; what is longer stays text."""
DISPLAYED: Final = frozenset(["$$", r"\["])
"""What opens a formula that has a line of its own; the others stand in theirs."""
_CLOSERS: Final = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}
_FAR: Final = 4 * LONGEST
"""Characters of the source within which a formula ends, with what stands before its lines."""
_OPENER: Final = re.compile(r"\\\\|\$\$|\\[\[(]")
_FENCE: Final = re.compile(r"\s*(?:```|~~~)")
_TELLING: Final = re.compile(r"[\\^_=+*/<>|\d-]")
"""A formula between dollars with spaces inside has one of these, else it is about money."""
_SINGLE: Final = re.compile(rf"\$(?![\s$])([^$\n]{{0,{LONGEST}}}[^$\s\\])\$(?![\w$])")
"""Between two dollars: no space at either end, and no word or number after them."""
_BETWEEN: Final = re.compile(r"[\\^_={}]|^\d*[A-Za-z]['!]?$|^[A-Za-z]'?\([^()]*\)$|^\w+ ?[-+*/<>] ?\w+$")
"""A formula between two dollars has such a sign, is a letter (`2n`, `n!`), a function's value (`O(n)`), or two things
and a sign between them."""
_ALIGNED: Final = re.compile(r"\\(begin|end)\{(?:aligned|gathered|equation|eqnarray)(\*?)\}")
_TAGS: Final = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "ms",
        "mtext",
        "mspace",
        "mfrac",
        "msqrt",
        "mroot",
        "msub",
        "msup",
        "msubsup",
        "munder",
        "mover",
        "munderover",
        "mtable",
        "mtr",
        "mtd",
        "mlabeledtr",
        "mstyle",
        "mpadded",
        "mphantom",
        "menclose",
        "mmultiscripts",
        "mprescripts",
        "none",
    ]
)
_ATTRIBUTES: Final = frozenset(
    [
        "display",
        "mathvariant",
        "stretchy",
        "fence",
        "form",
        "separator",
        "accent",
        "accentunder",
        "lspace",
        "rspace",
        "width",
        "height",
        "depth",
        "voffset",
        "linethickness",
        "columnalign",
        "rowalign",
        "columnspacing",
        "rowspacing",
        "columnlines",
        "rowlines",
        "minsize",
        "maxsize",
        "mathcolor",
        "mathbackground",
        "mathsize",
        "scriptlevel",
        "displaystyle",
        "notation",
        "movablelimits",
        "symmetric",
        "largeop",
        "linebreak",
    ]
)
_NAMED: Final = re.compile(r"[A-Za-z]{2,}")
"""`log`, `sin`, `max`: a function by its name, which stands off from what it is applied to."""
_THIN: Final = '<mspace width="0.167em"></mspace>'
_VALUE: Final = re.compile(r"[\w .%#+-]{0,60}")


def add_formulas(parser: MarkdownIt) -> None:
    """Teaches a parser formulas."""
    parser.block.ruler.before(
        "fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.inline.ruler.before("escape", "formula", _inline)


@lru_cache(1024)
def rendered(tex: str, *, display: bool) -> str:
    """MathML of a formula; its source as text where it cannot be read. Cached, for answers grow around it."""
    from latex2mathml.converter import (
        convert_to_element,  # a table of 3,000 symbols: read with the first formula
    )

    source = _ALIGNED.sub(r"\\\1{align*}", tex)
    kind = "block" if display else "inline"
    try:
        drawn = _markup(convert_to_element(source, display=kind))
    except Exception as exc:  # whatever a model writes, the library's parser must not take the page along
        if not type(exc).__module__.startswith("latex2mathml"):  # which says so of TeX that is wrong
            where = traceback.extract_tb(exc.__traceback__)[-1]
            _tell(type(exc).__name__, where.filename, where.lineno)
        return f'<code class="formula-source">{html.escape(tex)}</code>'
    return f'<span class="formula" tabindex="0">{drawn}</span>' if display else drawn


@cache
def _tell(kind: str, file: str, line: int | None) -> None:
    """Logs a failure once, without the formula, which is somebody's text."""
    log.warning("a formula is shown as its source, by a fault of the program: %s in %s:%s", kind, file, line)


def open_formula(text: str) -> int | None:
    """Where a formula begins that may still be closed by what follows `text`; None if all are closed."""
    at = 0
    while (found := _OPENER.search(text, at)) is not None:
        closer = _CLOSERS.get(found.group())
        if closer is None:  # an escaped backslash
            at = found.end()
            continue
        end = text.find(closer, found.end(), found.end() + LONGEST + 2)
        if end < 0 and len(text) - found.end() <= LONGEST:
            return found.start()
        at = found.end() if end < 0 else end + 2
    return None


def _inline(state: StateInline, silent: bool) -> bool:
    opener = state.src[state.pos : state.pos + 2]
    closer = _CLOSERS.get(opener)
    if closer is None:
        return _between_dollars(state, silent)
    begin = state.pos + 2
    end = state.src.find(closer, begin, min(state.posMax, begin + LONGEST + 2))
    tex = state.src[begin:end]
    if end < 0 or not tex.strip() or (opener == "$$" and not _is_formula(state.src, state.pos, end)):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = tex.strip(), opener
    state.pos = end + 2
    return True


def _between_dollars(state: StateInline, silent: bool) -> bool:
    before = state.src[state.pos - 1 : state.pos]
    found = None if before == "$" or before.isalnum() else _SINGLE.match(state.src, state.pos, state.posMax)
    if found is None or not _BETWEEN.search(found[1]):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = found[1], "$"
    state.pos = found.end()
    return True


def _is_formula(text: str, begin: int, end: int) -> bool:
    """Not "$$ to $$$", which is what a meal costs."""
    inside = text[begin + 2 : end]
    if "$" in (text[begin - 1 : begin], text[end + 2 : end + 3], inside[:1], inside[-1:]):
        return False
    tight = not inside[0].isspace() and not inside[-1].isspace()
    return tight or _TELLING.search(inside) is not None


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.is_code_block(start):
        return False
    first = _line(state, start)
    opener = first[:2]
    closer = {"$$": "$$", r"\[": r"\]"}.get(opener)
    if closer is None or (opener == "$$" and first[2:3] == "$"):
        return False
    begin = state.bMarks[start] + state.tShift[start] + 2
    if state.src.find(closer, begin, begin + _FAR) < 0:  # told at once: there may be thousands of openers
        return False
    lines = [first[2:]]
    last, length = start, 0
    while closer not in lines[-1]:
        last, length = last + 1, length + len(lines[-1]) + 1
        if last >= end or length > LONGEST:
            return False
        if state.sCount[last] < state.blkIndent and not state.isEmpty(last):
            return False
        lines.append(_line(state, last))
        if _FENCE.match(lines[-1]):
            return False
    inside, _, after = lines[-1].partition(closer)
    tex = "\n".join([*lines[:-1], inside]).strip()
    if after.strip(" \t.,;:") or not tex or len(tex) > LONGEST:
        return False
    if opener == "$$" and last == start and not _is_formula(f"$${inside}$$", 0, len(inside) + 2):
        return False
    if silent:
        return True
    state.line = last + 1
    token = state.push("formula_block", "math", 0)
    token.block, token.content, token.markup, token.map = True, tex, opener, [start, state.line]
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _markup(element: Element) -> str:
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    given = "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _VALUE.fullmatch(value)
    )
    inside = html.escape(html.unescape(element.text or ""), quote=False)
    inside += "".join(_spaced(element))
    return f"<{element.tag}{given}>{inside}</{element.tag}>"


def _spaced(element: Element) -> Iterator[str]:
    """What an element holds, with the space that TeX sets between a function's name and a neighbour, as in n log n."""
    before: Element | None = None
    for each in element:
        if before is not None and element.tag in {"math", "mrow"} and "mo" not in {before.tag, each.tag}:
            yield _THIN if _is_named(before) or _is_named(each) else ""
        yield _markup(each)
        before = each


def _is_named(element: Element) -> bool:
    base = element[0] if element.tag in {"msub", "msup", "msubsup", "munder"} and len(element) else element
    return base.tag in {"mi", "mo"} and _NAMED.fullmatch(base.text or "") is not None
