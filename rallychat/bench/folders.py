"""A data folder for one measurement: the models of this machine, and nothing that is anybody's."""

from __future__ import annotations

from pathlib import Path

from rallychat.settings import Settings


def alone(settings: Settings, folder: Path) -> Settings:
    """The same settings with this data folder, SQLite in it whatever database is set, and no titles."""
    return settings.model_copy(update={"data_dir": folder, "database_url": None, "titles": False})


def apart(settings: Settings, folder: Path) -> Settings:
    """The same, with the models of the settings' own folder: fetched ones, and those of its catalog."""
    settings.models_dir.mkdir(parents=True, exist_ok=True)  # what is fetched now belongs there, too
    for place in (settings.models_dir, settings.catalog_dir):
        (folder / place.name).symlink_to(place.resolve())
    return alone(settings, folder)
