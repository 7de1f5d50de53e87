"""Pieces of HTML for the page. Templates escape everything; only rendered Markdown is let through."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rallychat.catalog import Family
from rallychat.store import Hit
from rallychat.ui import markdown
from rallychat.ui.context_view import ContextView, Stretch
from rallychat.ui.model_view import MenuView, ModelCardView
from rallychat.ui.review_view import ReviewView
from rallychat.ui.views import UNTITLED, Day, Folder, ListedConversation, MessageView

TEMPLATES: Final = Path(__file__).parent / "templates"


def messages(views: Sequence[MessageView]) -> str:
    """Messages as the transcript shows them, oldest first."""
    return _render("messages.html", views=views)


def conversations(
    days: Sequence[Day],
    *,
    older: str | None,
    pinned: Sequence[ListedConversation] = (),
    folders: Sequence[Folder] = (),
    more: bool = False,
    shelf: str = "recent",
) -> str:
    """A list of conversations. `older`: id to ask on from, if any are left. `more`: not the first part."""
    values = {"groups": days, "older": older, "pinned": pinned, "folders": folders, "more_of": more}
    return _render("conversations.html", shelf=shelf, **values)


def folder(held: Folder) -> str:
    """More of what a folder holds."""
    return _render("folder.html", folder=held)


def found(hits: Sequence[Hit]) -> str:
    """What a search found."""
    return _render("found.html", hits=hits, untitled=UNTITLED)


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


def shell(name: str, /, **values: Any) -> str:
    """A fixed part of the page."""
    return _render(f"{name}.html", **values)


def _render(name: str, /, **values: Any) -> str:
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
    environment.filters["day"] = _day
    environment.filters["browser"] = browser
    return environment


@lru_cache(512)
def _markdown(text: str) -> Markup:
    """Cached: finished messages are asked for again whenever a conversation is opened."""
    return Markup(markdown.render(text))  # noqa: S704 - safe by construction, see markdown.py


def _day(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")


_BROWSERS: Final = (
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS", "macOS"),
    ("Linux", "Linux"),
)


def browser(device: str) -> str:
    """What a browser calls itself, in two words."""
    name = next(
        (said for part, said in _BROWSERS if part in device), device.partition("/")[0][:40] or "A browser"
    )
    system = next((said for part, said in _SYSTEMS if part in device), "")
    return f"{name} on {system}" if system else name
