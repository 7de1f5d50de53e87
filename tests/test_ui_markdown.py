from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallychat.ui.live import LiveMarkdown
from rallychat.ui.markdown import render

BARE = (
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "li", "blockquote", "hr", "br", "strong", "em", "s"),
    *("table", "thead", "tbody", "tr", "figcaption", "code"),
)
ALLOWED: dict[str, set[str]] = {
    **{tag: set() for tag in BARE},
    "ol": {"start"},
    "a": {"href", "title", "target", "rel", "class"},
    "th": {"class"},
    "td": {"class"},
    "div": {"class", "tabindex"},
    "figure": {"class"},
    "pre": {"tabindex"},
    "span": {"class"},
    "button": {"type", "class", "data-action"},
    "li": {"class"},
    "input": {"type", "disabled", "checked", "aria-label"},
}
MATHML = "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd "
MATHML += "mstyle mpadded mphantom menclose mlabeledtr"
DRAWN = "display mathvariant stretchy fence form accent accentunder lspace rspace width height depth linethickness "
DRAWN += "columnalign columnspacing rowspacing columnlines rowlines minsize maxsize mathcolor mathbackground mathsize "
DRAWN += (
    "scriptlevel displaystyle notation movablelimits symmetric largeop linebreak voffset separator rowalign"
)
ALLOWED |= {tag: set(DRAWN.split()) for tag in MATHML.split()}
ALLOWED["span"] |= {"tabindex"}
ALLOWED["code"] = {"class"}
CLASSES = {
    "formula",
    "formulas",
    "formula-source",
    "image-link",
    "left",
    "right",
    "center",
    "table",
    "code",
    "code-language",
    "code-copy",
    "task",
}

CORPUS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><animate onbegin=alert(1) /></svg>",
    "<svg><script href='data:,alert(1)'/></svg>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](java&#10;script:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;&#x61;vascript&colon;alert(1))",
    "[x](  javascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example/steal)",
    "[x](/ui/conversations)",
    '[x](https://e.example/"onmouseover="alert(1))',
    "[x](https://e.example 'a\" onclick=alert(1) x=\"')",
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '![" onerror="alert(1)](https://e.example/a.png)',
    "<javascript:alert(1)>",
    '<https://e.example/"onclick=alert(1)>',
    'https://e.example/"onclick="alert(1)',
    "https://e.example/<script>alert(1)</script>",
    "```\n</code></pre><script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "```html onclick=alert(1)\n<b onclick=alert(1)>x</b>\n```",
    "~~~ ' onmouseover='alert(1)\nx\n~~~",
    "`<img src=x onerror=alert(1)>`",
    "    <script>alert(1)</script>",
    "> <script>alert(1)</script>\n> - <img src=x onerror=alert(1)>",
    "| <script>alert(1)</script> | b |\n|:-:|-:|\n| <img onerror=alert(1)> | [x](javascript:1) |",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\<script>alert(1)\\</script>",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<style>@import 'https://evil.example/x.css'</style>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<p style='background:url(https://evil.example/x)'>",
    "**<b onmouseover=alert(1)>x**",
    r"\(\text{<script>alert(1)</script>}\)",
    r"$$\href{javascript:alert(1)}{x}$$",
    r"\[\style{background:url(//evil.example)}{x} \class{evil}{y}\]",
    "$$\n\\text{</math><img src=x onerror=alert(1)>}\n$$",
    r"\(\color{red\" onload=alert(1) x=\"}{x}\)",
    "a <b/onclick=alert(1)> [![i](https://e.example/i.png)](javascript:alert(1))",
]


class Findings(HTMLParser):
    """Everything in a piece of HTML that the page must never get."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.bad: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED:
            self.bad.append(f"<{tag}>")
            return
        for name, value in attrs:
            if name not in ALLOWED[tag]:
                self.bad.append(f"<{tag} {name}>")
            if name == "href" and not (value or "").lower().startswith(("https://", "http://", "mailto:")):
                self.bad.append(f"href={value}")
            if name == "class":
                self.bad += [c for c in (value or "").split() if c not in CLASSES and not c.startswith("hl-")]

    def handle_comment(self, data: str) -> None:
        self.bad.append(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self.bad.append(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        self.bad.append(f"<?{data}>")


def live(text: str, *, step: int) -> str:
    """What a viewer ends up with who got `text` in pieces of `step` characters."""
    view, shown, tail = LiveMarkdown(), "", ""
    for start in range(0, len(text), step):
        update = view.grow(text[start : start + step])
        shown += update.finished
        kept = tail.encode("utf-16-le")[: 2 * update.keep].decode("utf-16-le") if not update.finished else ""
        tail = kept + update.tail
        assert not Findings(shown + tail).bad
    return shown + tail


markup = st.lists(
    st.sampled_from(
        [
            *CORPUS,
            "\n",
            "\n\n",
            "> ",
            "- ",
            "```",
            "$$",
            r"\[",
            r"\]",
            r"\(",
            r"\)",
            r"\text{",
            "}",
            "[",
            "](",
            ")",
            "<",
            ">",
            '"',
            "'",
            "`",
            "|",
            " ",
            "x",
        ]
    )
    | st.text(max_size=12),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("attack", CORPUS)
def test_no_attack_leaves_the_list_of_allowed_tags_and_attributes(attack: str) -> None:
    assert Findings(render(attack)).bad == []


@given(markup)
@settings(deadline=None)
def test_whatever_a_model_says_only_allowed_tags_and_attributes_come_out(text: str) -> None:
    assert Findings(render(text)).bad == []


@given(markup, st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_a_growing_answer_is_as_safe_as_a_finished_one(text: str, step: int) -> None:
    live(text, step=step)


def test_the_checker_itself_sees_what_it_must_not_miss() -> None:
    bad = Findings('<a href="javascript:1" onclick="x" class="z">y</a><script></script><!-- c -->').bad
    assert bad == ["href=javascript:1", "<a onclick>", "z", "<script>", "<!-- c -->"]


def test_raw_html_is_shown_as_text() -> None:
    assert render("a <b>bold</b>") == "<p>a &lt;b&gt;bold&lt;/b&gt;</p>\n"


def test_an_image_becomes_a_link_so_that_nothing_is_requested() -> None:
    html = render("![a cat](https://pictures.example/cat.png)")
    assert "<img" not in html
    assert 'href="https://pictures.example/cat.png"' in html
    assert ">a cat</a>" in html


def test_code_has_its_language_a_copy_button_and_colours() -> None:
    html = render('```python title="x"\ndef f(): ...\n```')
    assert '<span class="code-language">python</span>' in html
    assert 'data-action="copy-code"' in html
    assert '<span class="hl-k">def</span>' in html


def test_code_keeps_its_first_blank_line_and_indentation() -> None:
    html = render("```text\n\n  a\n```")
    assert "<code>\n  a\n</code>" in html


def test_an_unknown_language_is_plain_text() -> None:
    assert "<code>a &lt; b\n</code>" in render("```nosuchlanguage\na < b\n```")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("see https://a.example/b.", "https://a.example/b"),
        ("(https://a.example/b_(c))", "https://a.example/b_(c)"),
        ("[note: https://a.example/b]", "https://a.example/b"),
        ("https://a.example/b?c=1&d=2!", "https://a.example/b?c=1&amp;d=2"),
        ("**https://a.example/b**", "https://a.example/b"),
    ],
)
def test_a_bare_address_is_a_link_without_the_punctuation_around_it(text: str, target: str) -> None:
    assert f'href="{target}"' in render(text)


@pytest.mark.parametrize(
    "text", ["main.py and example.com", "https://", "`https://a.example`", "ftp://a.example"]
)
def test_what_is_no_web_address_is_no_link(text: str) -> None:
    assert "<a" not in render(text)


def test_an_address_inside_a_link_is_not_linked_again() -> None:
    assert render("[https://a.example](https://b.example)").count("<a") == 1


def test_tables_and_strikethrough_work_and_alignment_is_a_class() -> None:
    html = render("| a | b |\n|:--|--:|\n| ~~1~~ | 2 |")
    assert "<s>1</s>" in html
    assert '<td class="right">2</td>' in html
    assert "style=" not in html


def test_a_list_of_tasks_has_boxes_nobody_can_tick() -> None:
    html = render("- [x] done\n- [ ] to do\n- [y] neither")
    assert html.count('<li class="task"><input type="checkbox" disabled') == 2
    assert html.count(" checked>done") == 1
    assert "<li>[y] neither</li>" in html


def test_text_that_makes_a_search_begin_anew_at_each_letter_is_read_in_one_go() -> None:
    """Whoever sends it would hold everybody's answers up for minutes."""
    assert render("http://a.example/" + ")" * 300_000).startswith('<p><a href="http://a.example/"')
    assert "x" in LiveMarkdown().grow("a\n\n" + " " * 300_000 + "x").tail
