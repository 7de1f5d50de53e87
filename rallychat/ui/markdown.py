"""Markdown -> HTML that is safe to insert into a page, by construction.

Raw HTML stays text, every tag that can come out is written here or by markdown-it, and links must begin with
a scheme from a short list. Knows Markdown; never sees messages, conversations or HTTP.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, MutableMapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from rallychat.ui import formulas

Env = MutableMapping[str, Any]

PLAIN_CODE: Final = "plain_code"
"""Key of the environment: code is escaped but not highlighted (a long block that is still growing)."""

_LINK: Final = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_URL_IN_TEXT: Final = re.compile(r"https?://[^\s<>\"'`|\\^{}]+", re.IGNORECASE)
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9_+#.-]{1,24}")
_ELSEWHERE: Final = 'target="_blank" rel="noopener noreferrer nofollow"'
_HIGHLIGHT_LIMIT: Final = 100_000
_TASK: Final = re.compile(r"\[([ xX])\]\s+")
_ALIGNMENTS: Final = {f"text-align:{side}": side for side in ("left", "center", "right")}


def render(text: str) -> str:
    """HTML of a whole Markdown text."""
    env: Env = {}
    return render_tokens(parse(text, env), env)


def parse(text: str, env: Env) -> list[Token]:
    """Markdown tokens of `text`; reference definitions are collected in `env`, which may be used again."""
    return _markdown().parse(text, env)


def render_tokens(tokens: Sequence[Token], env: Env) -> str:
    """HTML of what `parse` returned, or of a run of whole top-level blocks of it."""
    parser = _markdown()
    return str(parser.renderer.render(tokens, parser.options, env))


def highlighted(code: str, language: str) -> str:
    """Escaped HTML of `code`, with classes (`hl-…`) where the language is known."""
    lexer = _lexer(language.lower()) if language and len(code) <= _HIGHLIGHT_LIMIT else None
    if lexer is None:
        return html.escape(code)
    return highlight(code, lexer(stripnl=False, ensurenl=False), _FORMATTER)


_FORMATTER: Final[HtmlFormatter[str]] = HtmlFormatter(nowrap=True, classprefix="hl-")


@lru_cache(256)
def _lexer(language: str) -> type[Lexer] | None:
    """The class, as threads may not share instances; cached, as an unknown name searches plugins."""
    if language in {"text", "txt", "plain", "plaintext"}:
        return None
    try:
        return type(get_lexer_by_name(language))
    except ClassNotFound:
        return None


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False, "linkify": False, "maxNesting": 20})
    parser.enable(["table", "strikethrough"])
    formulas.add_formulas(parser)
    parser.add_render_rule("formula", _formula)
    parser.add_render_rule("formula_block", _formula)
    parser.validateLink = _is_safe_link  # type: ignore[method-assign]
    parser.core.ruler.push("bare_links", _bare_links)
    parser.core.ruler.push("alignment_classes", _alignment_classes)
    parser.core.ruler.push("tasks", _tasks)
    parser.add_render_rule("task", _task)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("code_block", _fence)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("link_open", _link_open)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _is_safe_link(url: str) -> bool:
    """Absolute web and mail addresses only: nothing relative, so an answer cannot point into this server."""
    return _LINK.match(url) is not None


def _fence(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env) -> str:
    token = tokens[index]
    named = _LANGUAGE.match(token.info.strip())
    language = named.group() if named else ""
    code = html.escape(token.content) if env.get(PLAIN_CODE) else highlighted(token.content, language)
    return (
        f'<figure class="code"><figcaption><span class="code-language">{language or "text"}</span>'
        '<button type="button" class="code-copy" data-action="copy-code">Copy</button></figcaption>'
        f'<pre tabindex="0"><code>{code}</code></pre></figure>\n'
    )


def _formula(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env) -> str:
    token = tokens[index]
    drawn = formulas.rendered(token.content, display=token.markup in formulas.DISPLAYED)
    return f'<div class="formulas">{drawn}</div>\n' if token.type == "formula_block" else drawn


def _image(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env
) -> str:
    """A link in place of the picture: showing it would tell a stranger's server that it was read."""
    token = tokens[index]
    source = html.escape(str(token.attrs.get("src", "")))
    label = html.escape(token.content or "image")
    return f'<a class="image-link" href="{source}" {_ELSEWHERE}>{label}</a>'


def _link_open(
    _: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env
) -> str:
    target = html.escape(str(tokens[index].attrs.get("href", "")))
    title = tokens[index].attrs.get("title")
    titled = f' title="{html.escape(str(title))}"' if title else ""
    return f'<a href="{target}"{titled} {_ELSEWHERE}>'


def _table_open(
    _: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env
) -> str:
    return '<div class="table" tabindex="0"><table>\n'


def _table_close(
    _: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env
) -> str:
    return "</table></div>\n"


def _alignment_classes(state: StateCore) -> None:
    """Cells say their alignment by a class, so that no style attribute ever comes out."""
    for token in state.tokens:
        side = _ALIGNMENTS.get(str(token.attrs.pop("style", "")))
        if side is not None:
            token.attrSet("class", side)


def _tasks(state: StateCore) -> None:
    """`- [x] done` and `- [ ] to do` become boxes: nobody's to tick, for they are what was said."""
    for item, paragraph, inline in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if (item.type, paragraph.type, inline.type) != ("list_item_open", "paragraph_open", "inline"):
            continue
        first = inline.children[0] if inline.children else None
        found = _TASK.match(first.content) if first is not None and first.type == "text" else None
        if first is None or found is None or inline.children is None:
            continue
        first.content = first.content[found.end() :]
        item.attrSet("class", "task")
        inline.children.insert(0, Token("task", "input", 0, content=found[1].strip()))


def _task(_: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict, env: Env) -> str:
    ticked = bool(tokens[index].content)
    label = "done" if ticked else "to do"
    return f'<input type="checkbox" disabled aria-label="{label}"{" checked" if ticked else ""}>'


def _bare_links(state: StateCore) -> None:
    """Turns bare http(s) addresses into links. Schemes are required: `main.py` is a file, not a site."""
    for block in state.tokens:
        if block.type != "inline" or "://" not in block.content or block.children is None:
            continue
        children: list[Token] = []
        depth = 0
        for token in block.children:
            depth += token.nesting if token.type in {"link_open", "link_close"} else 0
            if token.type == "text" and depth == 0:
                children.extend(_linked(token, state.md))
            else:
                children.append(token)
        block.children = children


def _linked(token: Token, parser: MarkdownIt) -> Iterator[Token]:
    text, end = token.content, 0
    for match in _URL_IN_TEXT.finditer(text):
        url = _trimmed(match.group())
        if match.start() < end or len(url) <= len("https://"):
            continue
        yield from _text(text[end : match.start()], token.level)
        yield Token("link_open", "a", 1, attrs={"href": parser.normalizeLink(url)}, level=token.level)
        yield from _text(url, token.level + 1)
        yield Token("link_close", "a", -1, level=token.level)
        end = match.start() + len(url)
    yield from _text(text[end:], token.level)


def _text(content: str, level: int) -> Iterator[Token]:
    if content:
        yield Token("text", "", 0, content=content, level=level)


def _trimmed(url: str) -> str:
    """The address without the punctuation around it; a closing bracket stays if it was opened inside."""
    unopened = {closer: url.count(closer) - url.count(opener) for opener, closer in ("()", "[]")}
    end = len(url)
    while end and (url[end - 1] in ".,;:!?*_~" or unopened.get(url[end - 1], 0) > 0):
        end -= 1
        if url[end] in unopened:
            unopened[url[end]] -= 1
    return url[:end]
