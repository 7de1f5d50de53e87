"""Writes the golden renders and the docs' tables anew; look at the difference before you commit it."""

from __future__ import annotations

from rallychat.catalog import Catalog
from rallychat.settings import Settings
from tests.golden import FOLDER, golden
from tests.golden.table import pages

catalog = Catalog.load(Settings())
for family in catalog.families.values():
    if family.template:
        (FOLDER / f"{family.id}.txt").write_text(golden(family), encoding="utf-8", newline="")
for page, text in pages(catalog).items():
    page.write_text(text, encoding="utf-8")
