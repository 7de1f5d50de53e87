"""Writes the golden renders anew; look at the difference before you commit it."""

from __future__ import annotations

from rallychat.catalog import Catalog
from rallychat.settings import Settings
from tests.golden import FOLDER, golden

for family in Catalog.load(Settings()).families.values():
    if family.template:
        (FOLDER / f"{family.id}.txt").write_text(golden(family), encoding="utf-8", newline="")
