"""Pieces of HTML for the page. Templates escape everything; only rendered Markdown is let through."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rallychat.catalog import Family
from rallychat.ui import markdown
from rallychat.ui.context_view import ContextView, Stretch
from rallychat.ui.model_view import MenuView, ModelCardView
from rallychat.ui.review_view import ReviewView
from rallychat.ui.views import Day, MessageView

TEMPLATES: Final = Path(__file__).parent / "templates"


def messages(views: Sequence[MessageView]) -> str:
    """Messages as the transcript shows them, oldest first."""
    return _render("messages.html", views=views)


def conversations(days: Sequence[Day], *, older: str | None, more: bool = False) -> str:
    """The list of conversations. `older`: id to ask on from, if any are left. `more`: not the first part."""
    return _render("conversations.html", groups=days, older=older, more_of=more)


def model_card(card: ModelCardView) -> str:
    """One card of the model menu."""
    return _render("card.html", card=card)


def menu(view: MenuView) -> str:
    """The landing page of the model menu."""
    return _render("menu.html", menu=view)


def model_state(card: ModelCardView) -> str:
    """What of the review page follows the model's state."""
    return _render("review_state.html", card=card)


def review(view: ReviewView) -> str:
    """The review page of one model."""
    return _render("review.html", view=view, card=view.card)


def preview(family: Family, parts: Sequence[Stretch]) -> str:
    """A prompt as a family writes it."""
    return _render("preview.html", family=family, stretches=parts)


def context(view: ContextView | None) -> str:
    """The context inspector; None: nothing was asked yet."""
    return _render("context.html", view=view)


def shell(name: str, **values: Any) -> str:
    """A fixed part of the page."""
    return _render(f"{name}.html", **values)


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["markdown"] = _markdown
    return environment


@lru_cache(512)
def _markdown(text: str) -> Markup:
    """Cached: finished messages are asked for again whenever a conversation is opened."""
    return Markup(markdown.render(text))  # noqa: S704 - safe by construction, see markdown.py
