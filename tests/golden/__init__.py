"""What each family makes of one fixed conversation, as text files. `python -m tests.golden` writes them anew."""

from __future__ import annotations

from pathlib import Path

from rallychat.catalog import Family
from rallychat.messages import Message
from rallychat.templates import of_family

FOLDER = Path(__file__).parent
TURNS = (
    Message.of("user", "Hi, I am Ann.\nWhat is a rally?"),
    Message.of("assistant", "Hello Ann! A long exchange of strokes."),
    Message.of("user", "And a serve?"),
    Message.of("assistant", "The stroke that begins it."),
    Message.of("user", "Thank you!"),
)
SUMMARY = "Ann is learning table tennis.\nShe plays with her left hand."
SYSTEM = "Answer in one sentence."


def golden(family: Family) -> str:
    """One turn, three turns, with a system prompt, with a summary; a line before each names it."""
    template = of_family(family)
    default = [Message.of("system", family.default_system)] if family.default_system else []
    texts = {
        "one turn": template.render([*default, TURNS[0]]),
        "three turns": template.render([*default, *TURNS]),
        "three turns with a system prompt": template.render([Message.of("system", SYSTEM), *TURNS]),
        "three turns with a summary": template.render([*default, *TURNS], memory=SUMMARY),
    }
    return "".join(f"━━━ {name} ━━━\n{rendered.text}\n" for name, rendered in texts.items())
