"""The page's frame in Gradio Blocks: two sidebars and a stage, filled by fragments of our own.

Gradio gives the frame, the theme and what comes with it (Colab, sharing). It re-sends a whole component at each
update, so nothing that grows is a component: the transcript is filled by static/, see docs/web.md.
"""

from __future__ import annotations

import os
from typing import Final

# read when gradio is imported: nothing may be asked of, or told to, the internet
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from rallychat.ui import fragments

TITLE: Final = "RallyChat"
_EXAMPLES: Final = (
    ("Explain", "Explain how a refrigerator works to a curious ten-year-old."),
    ("Write", "Write a short, friendly note asking a neighbour to lend me a ladder."),
    ("Code", "Write a Python function that says whether a word is a palindrome."),
    ("Plan", "Plan a relaxed weekend in a city with two small children."),
)


def build() -> gr.Blocks:
    """The Blocks, without any event: what happens on the page goes through our own routes."""
    blocks: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with blocks:
        with gr.Sidebar(elem_id="rc-left", width=280):
            _fixed("left")
        _fixed("stage", examples=_EXAMPLES)
        with gr.Sidebar(elem_id="rc-right", width=380, position="right", open=False):
            _fixed("right")
    return blocks


def theme() -> gr.Theme:
    """Fonts of the machine only; colours come from static/tokens.css."""
    system = ("ui-sans-serif", "system-ui", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    return gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=system, font_mono=mono)


def _fixed(name: str, **values: object) -> None:
    gr.HTML(
        fragments.shell(name, **values),
        elem_id=f"rc-{name}-html",
        js_on_load=None,
        apply_default_css=False,
        padding=False,
    )
