"""What is known of families and models, and how they are named."""

from __future__ import annotations

from rallychat.catalog.load import Catalog
from rallychat.catalog.types import ANY, Adapter, Checkpoint, Family, Model, Sampling

__all__ = ["ANY", "Adapter", "Catalog", "Checkpoint", "Family", "Model", "Sampling"]
