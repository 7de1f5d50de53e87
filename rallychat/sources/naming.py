"""Models by any name a person at this machine may give: the catalog's, files and folders, repositories of the hub."""

from __future__ import annotations

import re
from typing import Final

from rallychat.catalog import Catalog, Model
from rallychat.catalog.brought import Known
from rallychat.errors import NoNetwork, NotFound
from rallychat.settings import Settings

_HUB_ID: Final = re.compile(
    r"(?:https://huggingface\.co/)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?/?",
    re.ASCII,
)


def is_hub_id(name: str) -> bool:
    """It looks like a repository of the hub: `owner/repo`, `owner/repo@revision`, or its address."""
    return _HUB_ID.fullmatch(name) is not None


def resolve(
    name: str, catalog: Catalog, settings: Settings, *, family: str | None = None, base: str | None = None
) -> Model:
    """As `Catalog.resolve`, and beyond it repositories of the hub, which are looked at. Blocks.

    Args:
        name: also `owner/repo`, with `@revision` behind it if wanted.
        family: the prompt format, for a model that does not say it.
        base: the hub id of what an adapter that the catalog does not know is laid over; what it says if not given.

    Raises:
        FamilyNeeded: nothing says its prompt format.
        Unsupported: it could not be run, or not safely.
        SourceError: the hub does not show it.
        NotFound, InvalidRequest, SettingsError: as `Catalog.resolve`; several GGUF files are listed.
    """
    try:
        return catalog.resolve(name, family=family)
    except NotFound:
        found = _HUB_ID.fullmatch(name)
        if found is None or name.startswith("hub:"):
            raise
    if settings.offline:
        raise NoNetwork(
            f"'{name}' is not in the catalog, and RallyChat is set to stay offline.",
            hint="look at it once without RALLYCHAT_OFFLINE",
        )
    from rallychat.sources import lookup  # huggingface_hub is heavy and only some models need it

    known = Known(catalog.families, catalog.models, family)
    return catalog.run(lookup.look_up(found["repo"], found["revision"] or "main", known, settings, base=base))
